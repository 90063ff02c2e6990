#!/bin/sh
# Chromium and its driver for the tests of the report's page. Where they cannot be installed those tests skip and say so.
set -eu
if command -v chromedriver >/dev/null && { command -v chromium >/dev/null || command -v google-chrome >/dev/null; }; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 && exit 0
fi
echo "no chromium with chromedriver here, and they could not be installed: the tests of the report in a browser will skip" >&2

"""Decoders' nameless lines stay out of the terminal, and every other line comes through, whatever happens."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from malformed_images import jpeg

from qrdali.cli.decoder_messages import is_decoder_message, pass_on

KNOWN = [
    b"Corrupt JPEG data: premature end of data segment",
    b"Corrupt JPEG data: 25 extraneous bytes before marker 0xd9",
    b"Corrupt JPEG data: found marker 0xd9 instead of RST3",
    b"Premature end of JPEG file",
    b"Unsupported marker type 0x12",
    b"Inconsistent progression sequence for component 0 coefficient 5",
    b"libpng error: IHDR: out of place",
    b"libpng warning: Unknown compression method in IHDR",
    b"JPEGLib: Warning, Corrupt JPEG data: premature end of data segment.",
    b"TIFFReadDirectory: Warning, Unknown field with tag 700 (0x2bc) encountered.",
    b"[ERROR:0@0.002] global grfmt_tiff.cpp:116 TIFF_Error Sorry, can not handle image",
    b"[ WARN:1@0.025] global grfmt_tiff.cpp:926 readData OpenCV TIFF(line 926): failed",
    b"\x1b[0;31m[ERROR] \x1b[0m[jpeg_parser] Invalid marker",
    b"\x1b[0;31m\x1b[0;31m[ERROR] [ERROR] \x1b[0m\x1b[0m[webp_parser] Could not retrieve",
]
OTHERS = [
    b"",
    b"terminate called after throwing an instance of 'std::bad_alloc'",
    b"free(): invalid pointer",
    b"Fatal Python error: Segmentation fault",
    b"qrdali: error: x.jpg cannot be decoded: Corrupt JPEG data: premature end of data segment",
    b"warning: sample 3, /x/Corrupt JPEG data: .jpg, cannot be decoded",
    b"\x1b[0;31m[ERROR] \x1b[0m[nvimgcodec] Could not load extension module library. Error: x",
    b"Traceback (most recent call last):",
    b"RuntimeError: Premature end of JPEG file",
]


@pytest.mark.parametrize("line", KNOWN)
def test_messages_of_decoders_are_known(line: bytes) -> None:
    assert is_decoder_message(line)


@pytest.mark.parametrize("line", OTHERS)
def test_other_lines_are_not(line: bytes) -> None:
    assert not is_decoder_message(line)


def passed_on(*parts: bytes) -> bytes:
    """Returns what comes of `parts`, each written at once, before the end."""
    source, write = os.pipe()
    read, destination = os.pipe()
    for part in parts:
        os.write(write, part)
    os.close(write)
    pass_on(source, destination)
    os.close(destination)
    with open(read, "rb") as result:
        return result.read()


def test_lines_are_passed_on_less_the_known_ones() -> None:
    assert passed_on(b"".join(line + b"\n" for line in [*KNOWN, *OTHERS])) == b"\n".join([*OTHERS, b""])
    assert passed_on(b"Corrupt JPEG", b" data: bad\nno end") == b"no end"
    assert passed_on() == b""


def run_python(program: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    start = (
        "import os, sys, time; from qrdali.cli.decoder_messages import keep_out_of_stderr as keep; keep(); "
    )
    return subprocess.run(
        [sys.executable, "-c", start + program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=60,
        check=False,
    )


SAY = "os.write(2, b'Premature end of JPEG file\\nfrom C\\n'); "


def test_lines_of_c_come_through_a_crash() -> None:
    done = run_python("import faulthandler; faulthandler.enable(); " + SAY + "os.abort()")
    assert done.returncode == -signal.SIGABRT
    assert "from C\n" in done.stderr
    assert "Fatal Python error" in done.stderr
    assert "Premature" not in done.stderr


def test_the_status_and_pythons_own_lines_are_as_before() -> None:
    done = run_python(SAY + "print('Premature end of JPEG file', file=sys.stderr); sys.exit(3)")
    assert done.returncode == 3
    assert sorted(done.stderr.splitlines()) == ["Premature end of JPEG file", "from C"]


def test_the_beginning_of_a_line_is_not_kept_back_for_long() -> None:
    done = run_python("os.write(2, b'Premature '); time.sleep(1); os.write(2, b'end of JPEG file\\n')")
    assert done.stderr == "Premature end of JPEG file\n"


def test_a_signal_of_the_terminal_ends_no_filter() -> None:
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); os.setpgid(0, 0); "
    program = f"{ignored}keep(); os.killpg(0, signal.SIGINT); time.sleep(.2); {SAY}"
    assert run_python(program).stderr == "from C\n"


def test_a_terminal_stays_one() -> None:
    main, terminal = pty.openpty()
    done = run_python("print(sys.stderr.isatty(), sys.__stderr__.isatty(), os.isatty(2))", stderr=terminal)
    os.close(terminal)
    os.close(main)
    assert done.stdout == "True True False\n"


def test_without_a_standard_error_nothing_changes() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m qrdali --version 2>&-', sys.executable],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("qrdali")


def test_a_damaged_picture_is_decoded_without_a_word(tmp_path: Path) -> None:
    picture = str(tmp_path / "damaged.jpg")
    data = jpeg()
    Path(picture).write_bytes(data[:700] + b"\xff\xd9" + data[700:])  # an early end of image
    library, command = (
        subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        for words in (
            ["-c", "import qrdali, sys; qrdali.read(sys.argv[1])", picture],
            ["-m", "qrdali", "preview", picture, "--out", str(tmp_path / "sheet.png")],
        )
    )
    assert "Corrupt JPEG data: premature end of data segment\n" in library.stderr
    assert command.stderr.splitlines() == [f"{tmp_path / 'sheet.png'}: 4 reductions at 4 qualities"]

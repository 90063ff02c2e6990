/* Preloaded (LD_PRELOAD), it makes the C library's file operations fail as file systems do that lack them.
 *
 * FAULTS="NAME=ERRNO NAME=ERRNO …": the operations and their errors, such as "fsync_folder=22 mmap=19".
 * FAULTS_BELOW: files whose path does not begin with this are spared.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int below(const char *path)
{
    const char *folder = getenv("FAULTS_BELOW");
    return !folder || !path || path[0] != '/' || !strncmp(path, folder, strlen(folder));
}

static int opened_below(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return length < 0 || below(path);
}

static int is_folder(int fd)
{
    struct stat facts;
    return !fstat(fd, &facts) && S_ISDIR(facts.st_mode);
}

/* Returns the error of an operation, 0 if it works. */
static int fault(const char *name)
{
    const char *faults = getenv("FAULTS");
    size_t length = strlen(name);
    for (const char *at = faults; at && (at = strstr(at, name)); at += length)
        if ((at == faults || at[-1] == ' ') && at[length] == '=')
            return atoi(at + length + 1);
    return 0;
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
#define FAIL_IF(condition, name, failure) \
    do { \
        int error = fault(name); \
        if (error && (condition)) { \
            errno = error; \
            return failure; \
        } \
    } while (0)

int fsync(int fd)
{
    FAIL_IF(is_folder(fd) && opened_below(fd), "fsync_folder", -1);
    FAIL_IF(!is_folder(fd) && opened_below(fd), "fsync_file", -1);
    return REAL(int, fsync, int)(fd);
}

int flock(int fd, int operation)
{
    FAIL_IF(opened_below(fd), "flock", -1);
    return REAL(int, flock, int, int)(fd, operation);
}

int chmod(const char *path, mode_t mode)
{
    FAIL_IF(below(path), "chmod", -1);
    return REAL(int, chmod, const char *, mode_t)(path, mode);
}

int fchmod(int fd, mode_t mode)
{
    FAIL_IF(opened_below(fd), "chmod", -1);
    return REAL(int, fchmod, int, mode_t)(fd, mode);
}

int fchmodat(int folder, const char *path, mode_t mode, int flags)
{
    FAIL_IF(below(path), "chmod", -1);
    return REAL(int, fchmodat, int, const char *, mode_t, int)(folder, path, mode, flags);
}

int utimensat(int folder, const char *path, const struct timespec times[2], int flags)
{
    FAIL_IF(below(path), "utime", -1);
    return REAL(int, utimensat, int, const char *, const struct timespec *, int)(folder, path, times, flags);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    FAIL_IF(fd >= 0 && opened_below(fd), "mmap", MAP_FAILED);
    return REAL(void *, mmap, void *, size_t, int, int, int, off_t)(address, length, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    FAIL_IF(fd >= 0 && opened_below(fd), "mmap", MAP_FAILED);
    return REAL(void *, mmap64, void *, size_t, int, int, int, off64_t)(address, length, protection, flags, fd, offset);
}

int link(const char *from, const char *to)
{
    FAIL_IF(below(to), "link", -1);
    return REAL(int, link, const char *, const char *)(from, to);
}

int linkat(int folder, const char *from, int to_folder, const char *to, int flags)
{
    FAIL_IF(below(to), "link", -1);
    return REAL(int, linkat, int, const char *, int, const char *, int)(folder, from, to_folder, to, flags);
}

int symlink(const char *target, const char *path)
{
    FAIL_IF(below(path), "link", -1);
    return REAL(int, symlink, const char *, const char *)(target, path);
}

/* Programs built for large files call the names that end in 64. */
int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    int error = fault("fallocate");
    return error ? error : REAL(int, posix_fallocate64, int, off64_t, off64_t)(fd, offset, length);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count)
{
    FAIL_IF(opened_below(in), "sendfile", -1);
    return REAL(ssize_t, sendfile64, int, int, off64_t *, size_t)(out, in, offset, count);
}

int statvfs64(const char *path, struct statvfs64 *facts)
{
    FAIL_IF(below(path), "statvfs", -1);
    return REAL(int, statvfs64, const char *, struct statvfs64 *)(path, facts);
}

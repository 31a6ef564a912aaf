/* Stands between a process and its disk (LD_PRELOAD): counts what changes files under FAULTS_FOLDER, and fails it, kills
   the process at it, or notes it in a trace. Controlled from within the process by the fault_* functions. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FAIL_ONCE = 1, FAIL_FOR_GOOD = 2, KILL = 3 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long counted = 0, at = -1;
static int mode = 0, number = 0, trace = -1;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* What to fail, from the count-th change on from now: 1 once, 2 for good, 3 kill -9 there. 0: nothing. */
void fault_arm(int how, long count, int error) {
    pthread_mutex_lock(&mutex);
    mode = how, at = count, number = error, counted = 0;
    pthread_mutex_unlock(&mutex);
}

long fault_count(void) { return counted; }

void fault_trace(const char *path) { trace = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0600); }

static void note(const char *kind, const char *path, long offset, long size, const char *more, const void *data) {
    char line[9000];
    if (trace < 0) return;
    int length = snprintf(line, sizeof line, "%s\t%s\t%ld\t%ld\t%s\n", kind, path, offset, size, more);
    syscall(SYS_write, trace, line, length);
    if (data) syscall(SYS_write, trace, data, size);
}

void fault_mark(const char *text) {
    pthread_mutex_lock(&mutex);
    note("mark", "", 0, 0, text, NULL);
    pthread_mutex_unlock(&mutex);
}

static int watched(const char *path) {
    const char *folder = getenv("FAULTS_FOLDER");
    return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = readlink(link, path, 4095);
    path[length < 0 ? 0 : length] = 0;
    return watched(path);
}

/* Whether the change that comes now is to fail; called with the mutex held. */
static int fails(void) {
    long mine = counted++;
    if (mode == KILL && mine == at) kill(getpid(), SIGKILL);
    if ((mode == FAIL_ONCE && mine == at) || (mode == FAIL_FOR_GOOD && mine >= at)) {
        errno = number;
        return 1;
    }
    return 0;
}

#define CHANGE(type, condition, call, remark)                  \
    if (!(condition)) return call;                             \
    pthread_mutex_lock(&mutex);                                \
    type result = -1;                                          \
    if (!fails() && (result = call) >= 0) { remark; }          \
    int kept = errno;                                          \
    pthread_mutex_unlock(&mutex);                              \
    errno = kept;                                              \
    return result

ssize_t write(int fd, const void *data, size_t size) {
    char path[4096];
    long offset = fd > 2 ? lseek(fd, 0, SEEK_CUR) : -1;
    CHANGE(ssize_t, offset >= 0 && path_of(fd, path), REAL(write)(fd, data, size),
           note("write", path, offset, result, "", data));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    char path[4096];
    CHANGE(ssize_t, path_of(fd, path), REAL(pwrite)(fd, data, size, offset),
           note("write", path, offset, result, "", data));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return pwrite(fd, data, size, offset); }

int fsync(int fd) {
    char path[4096];
    CHANGE(int, path_of(fd, path), REAL(fsync)(fd), note("sync", path, 0, 0, "", NULL));
}

int fdatasync(int fd) {
    char path[4096];
    CHANGE(int, path_of(fd, path), REAL(fdatasync)(fd), note("sync", path, 0, 0, "", NULL));
}

int ftruncate(int fd, off_t size) {
    char path[4096];
    CHANGE(int, path_of(fd, path), REAL(ftruncate)(fd, size), note("truncate", path, size, 0, "", NULL));
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int rename(const char *from, const char *to) {
    CHANGE(int, watched(to), REAL(rename)(from, to), note("rename", from, 0, 0, to, NULL));
}

int unlink(const char *path) {
    CHANGE(int, watched(path), REAL(unlink)(path), note("unlink", path, 0, 0, "", NULL));
}

int mkdir(const char *path, mode_t bits) {
    CHANGE(int, watched(path), REAL(mkdir)(path, bits), note("mkdir", path, 0, 0, "", NULL));
}

static int open_(const char *path, int flags, mode_t bits) {
    struct stat status;
    int is_new = watched(path) && (flags & O_CREAT) && stat(path, &status) != 0;
    int empties = watched(path) && !is_new && (flags & O_TRUNC);
    int (*real)(const char *, int, ...) = REAL(open);
    CHANGE(int, is_new || empties, real(path, flags, bits),
           note(is_new ? "create" : "truncate", path, 0, 0, "", NULL));
}

#define BITS(flags)                                 \
    mode_t bits = 0;                                \
    if ((flags) & (O_CREAT | O_TMPFILE)) {          \
        va_list rest;                               \
        va_start(rest, flags);                      \
        bits = va_arg(rest, mode_t);                \
        va_end(rest);                               \
    }

int open(const char *path, int flags, ...) {
    BITS(flags)
    return open_(path, flags, bits);
}

int open64(const char *path, int flags, ...) {
    BITS(flags)
    return open_(path, flags | O_LARGEFILE, bits);
}

int openat(int folder, const char *path, int flags, ...) {
    BITS(flags)
    if (path[0] == '/') return open_(path, flags, bits);
    int (*real)(int, const char *, int, ...) = REAL(openat);
    return real(folder, path, flags, bits);
}

/* The first program of the guest: it loads the drivers, puts the host's files in place, and becomes what it was told.
 *
 * The kernel gives it its settings as variables: RUN is the program of the host's root that takes over, with
 * ARGUMENT. The host's root cannot be written; the share called out can. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST_DRIVERS = 64 };

static void end(const char *why) {
    perror(why);
    sync();
    reboot(RB_POWER_OFF);
    for (;;) pause();
}

/* In the order of their names, which begin with numbers. */
static void load_drivers(void) {
    struct dirent **names;
    int count = scandir("/modules", &names, NULL, alphasort);
    for (int i = 0; i < count && i < MOST_DRIVERS; i++) {
        char path[300];
        if (names[i]->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0 || syscall(SYS_finit_module, file, "", 0) != 0) end(path);
        close(file);
    }
}

static void put(const char *source, const char *target, const char *type, unsigned long flags, const char *how) {
    if (mount(source, target, type, flags, how) != 0) end(target);
}

int main(void) {
    load_drivers();
    const char *share = "trans=virtio,version=9p2000.L,msize=262144,cache=loose";
    put("root", "/host", "9p", MS_RDONLY, share);
    put("proc", "/host/proc", "proc", 0, "");
    put("sys", "/host/sys", "sysfs", 0, "");
    put("dev", "/host/dev", "devtmpfs", 0, "");
    put("run", "/host/run", "tmpfs", 0, "mode=755");
    mkdir("/host/run/out", 0755);
    put("out", "/host/run/out", "9p", 0, "trans=virtio,version=9p2000.L,msize=262144");
    mkdir("/host/dev/shm", 01777);
    put("shm", "/host/dev/shm", "tmpfs", 0, "mode=1777");
    const char *program = getenv("RUN"), *argument = getenv("ARGUMENT");
    if (program == NULL || argument == NULL) end("RUN and ARGUMENT");
    if (chroot("/host") != 0 || chdir("/") != 0) end("/host");
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/run", 1);
    setenv("TMPDIR", "/run", 1);
    pid_t child = fork();
    if (child == 0) {
        execl(program, program, argument, (char *)NULL);
        end(program);
    }
    /* As init, it takes in the children of others too. */
    while (child > 0) {
        int status;
        pid_t gone = syscall(SYS_wait4, -1, &status, 0, NULL);
        if (gone == child || gone < 0) break;
    }
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}

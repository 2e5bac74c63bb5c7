/* The only program of the test's guest: init, and a writer that notices when its memory is not what it wrote.
 *
 * Every page of a region has a kind, and content that follows from its number, its kind and how often it was
 * written. The numbers of writes are kept apart, with their sum and number kept once more: a page that is
 * damaged or of an earlier time differs from what its number says, a stale number from the sum.
 * A second thread counts on the serial console every ten milliseconds; who reads it sees for how long the guest
 * stood still. The guest's own clock would not show it: it stands still too.
 *
 * Kernel command line: writer.mib=N (size of the region), writer.rate=N (pages a second), writer.disk=1.
 * Commands on the console, one a line: v (verify all), r N (set the rate), w N (write only the first N pages),
 * x N (write N pages at once), d 1 and d 0 (start and end writing to the disk), p (power off). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, TICK_NS = 10000000, BATCH_NS = 5000000, RECORD = 512 };
enum kind { ZERO, TEXT, RANDOM, REPEATED, SPARSE };

static const enum kind MIX[20] = {ZERO, TEXT, SPARSE, RANDOM, REPEATED, TEXT, SPARSE, ZERO, TEXT, RANDOM,
                                  SPARSE, REPEATED, ZERO, TEXT, SPARSE, RANDOM, ZERO, TEXT, REPEATED, ZERO};
static const char *const WORDS[32] = {"the ", "page ", "of ", "memory ", "error ", "GET ", "/index ", "user ",
                                      "id=", "0000", "127.", "time ", "INFO ", "null, ", "true, ", "{\"a\":",
                                      "class ", "return ", "int ", "void ", "for ", "while ", "begin ", "end\n",
                                      "select ", "from ", "where ", "and ", "or ", "not ", "in ", "\n"};

static uint8_t *pages;
static uint32_t *written;
static size_t page_count, working_set;
static volatile uint64_t write_total, record_total, bad_total;
static int tty = 1, disk = -1;

static uint64_t mix64(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static void say(const char *format, ...) {
    char line[200];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    for (int at = 0; at < length;) {
        ssize_t done = write(tty, line + at, (size_t)(length - at));
        if (done <= 0) return;
        at += (int)done;
    }
}

static void fill_text(uint8_t *page, uint64_t seed) {
    size_t at = 0;
    while (at < PAGE) {
        uint64_t bits = next(&seed);
        for (int i = 0; i < 12 && at < PAGE; i++, bits >>= 5) {
            const char *word = WORDS[bits & 31];
            while (*word && at < PAGE) page[at++] = (uint8_t)*word++;
        }
    }
}

/* What page `number` holds after it was written `times` times. */
static void make_content(uint8_t *page, size_t number, uint32_t times) {
    uint64_t own = mix64(number + 1) | 1, now = mix64((number + 1) << 32 | times) | 1;
    uint64_t *words = (uint64_t *)page;
    switch (MIX[number % 20]) {
    case ZERO:
        memset(page, 0, PAGE);
        break;
    case TEXT:
        fill_text(page, now);
        break;
    case RANDOM:
        for (size_t i = 0; i < PAGE / 8; i++) words[i] = next(&now);
        break;
    case REPEATED:
        for (size_t i = 0; i < PAGE / 8; i++) words[i] = i & 1 ? now : own;
        break;
    case SPARSE:
        fill_text(page, own);
        for (int i = 0; i < 8; i++) words[(next(&now) >> 20) % (PAGE / 8)] = now;
        break;
    }
}

static void write_page(size_t number) {
    write_total++;
    written[number]++;
    make_content(pages + number * PAGE, number, written[number]);
}

static int is_good(size_t number) {
    static uint8_t expected[PAGE] __attribute__((aligned(8)));
    make_content(expected, number, written[number]);
    if (memcmp(expected, pages + number * PAGE, PAGE) == 0) return 1;
    bad_total++;
    if (bad_total < 20) say("BAD page=%zu written=%u kind=%d\n", number, written[number], MIX[number % 20]);
    return 0;
}

static void verify(void) {
    uint64_t sum = 0;
    size_t bad = 0;
    for (size_t i = 0; i < page_count; i++) {
        sum += written[i];
        bad += !is_good(i);
    }
    if (sum != write_total) bad_total++;
    say("VERIFIED pages=%zu bad=%zu sum=%llu total=%llu ever_bad=%llu\n", page_count, bad, (unsigned long long)sum,
        (unsigned long long)write_total, (unsigned long long)bad_total);
}

static void *tick(void *unused) {
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    for (uint64_t number = 0;; number++) {
        say("t %llu\n", (unsigned long long)number);
        due.tv_nsec += TICK_NS;
        if (due.tv_nsec >= 1000000000) {
            due.tv_nsec -= 1000000000;
            due.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
    }
    return unused;
}

/* Records of a fixed length, each with its number and content that follows from it. */
static void write_record(void) {
    uint64_t record[RECORD / 8], seed = mix64(record_total + 1) | 1;
    record[0] = record_total;
    for (size_t i = 1; i < RECORD / 8; i++) record[i] = next(&seed);
    if (write(disk, record, sizeof record) != sizeof record) {
        bad_total++;
        say("BAD disk record=%llu\n", (unsigned long long)record_total);
        close(disk);
        disk = -1;
        return;
    }
    if (++record_total % 16 == 0) fdatasync(disk);
}

static void set_disk(int on) {
    if (on && disk < 0) {
        /* The disk is looked for while this runs. */
        for (int i = 0; i < 1000 && access("/dev/vda", F_OK) != 0; i++) usleep(10000);
        if (mount("/dev/vda", "/mnt", "ext4", 0, NULL) != 0)
            say("BAD mount\n");
        else
            disk = open("/mnt/log", O_WRONLY | O_CREAT | O_APPEND, 0644);
    } else if (!on && disk >= 0) {
        fsync(disk);
        close(disk);
        disk = -1;
        if (umount("/mnt") != 0) say("BAD umount\n");
    }
    say("DISK records=%llu\n", (unsigned long long)record_total);
}

static void insert_modules(void) {
    static const char *const NAMES[] = {"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev",
                                        "virtio_pci", "virtio_blk"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        char path[80];
        snprintf(path, sizeof path, "/modules/%s.ko", NAMES[i]);
        int file = open(path, O_RDONLY);
        if (file >= 0) {
            if (syscall(SYS_finit_module, file, "", 0) != 0) say("BAD module %s: %s\n", NAMES[i], strerror(errno));
            close(file);
        }
    }
}

static long option(const char *line, const char *name, long otherwise) {
    const char *at = strstr(line, name);
    return at ? strtol(at + strlen(name), NULL, 10) : otherwise;
}

static void run_command(const char *line, double *rate) {
    long value = line[0] ? strtol(line + 1, NULL, 10) : 0;
    static uint64_t random = 88172645463325252u;
    switch (line[0]) {
    case 'v': verify(); break;
    case 'r': *rate = (double)value; say("RATE %ld\n", value); break;
    case 'w': working_set = value > 0 && (size_t)value < page_count ? (size_t)value : page_count;
              say("SET %zu\n", working_set); break;
    case 'x': for (long i = 0; i < value; i++) write_page((next(&random) >> 16) % working_set);
              say("WROTE %ld\n", value); break;
    case 'd': set_disk((int)value); break;
    case 'p': sync(); reboot(RB_POWER_OFF); break;
    default: break;
    }
}

int main(void) {
    mkdir("/proc", 0755), mkdir("/dev", 0755), mkdir("/mnt", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    tty = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
    struct termios raw;
    tcgetattr(tty, &raw);
    cfmakeraw(&raw);
    tcsetattr(tty, TCSANOW, &raw);
    char line[1024] = "";
    int file = open("/proc/cmdline", O_RDONLY);
    ssize_t length = read(file, line, sizeof line - 1);
    line[length > 0 ? length : 0] = 0;
    close(file);
    page_count = working_set = (size_t)option(line, "writer.mib=", 64) * (1 << 20) / PAGE;
    double rate = (double)option(line, "writer.rate=", 0);
    insert_modules();
    pages = mmap(NULL, page_count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    written = calloc(page_count, sizeof *written);
    if (pages == MAP_FAILED || !written) {
        say("BAD memory\n");
        for (;;) pause();
    }
    for (size_t i = 0; i < page_count; i++) write_page(i);
    if (option(line, "writer.disk=", 0)) set_disk(1);
    pthread_t ticking;
    pthread_create(&ticking, NULL, tick, NULL);
    say("READY pages=%zu\n", page_count);

    uint64_t random = 0x9e3779b97f4a7c15u;
    size_t checked = 0, got = 0;
    double owed = 0;
    struct timespec before, now, rest = {0, BATCH_NS};
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (;;) {
        struct pollfd readable = {.fd = tty, .events = POLLIN};
        while (poll(&readable, 1, 0) > 0 && read(tty, line + got, 1) == 1) {
            if (line[got] == '\n') {
                line[got] = 0;
                got = 0;
                run_command(line, &rate);
            } else if (got < 40) {
                got++;
            }
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
        owed += rate * ((double)(now.tv_sec - before.tv_sec) + (double)(now.tv_nsec - before.tv_nsec) / 1e9);
        before = now;
        /* What a slow processor cannot do is not made up for. */
        if (owed > rate / 10) owed = rate / 10;
        for (; owed >= 1; owed--) write_page((next(&random) >> 16) % working_set);
        for (int i = 0; i < 8; i++) is_good(checked++ % page_count);
        for (int i = 0; disk >= 0 && i < 4; i++) write_record();
        nanosleep(&rest, NULL);
    }
}

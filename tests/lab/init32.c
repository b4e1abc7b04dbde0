/*
 * PID 1 of an i386 machine that is to be dumped: fills its memory, then copies /proc/kpageflags to /dev/vdb.
 *
 * Freestanding, because a 64-bit host has no i386 busybox. The flags are written past the page cache, and nothing
 * happens after them: the dump that follows finds the pages as they say.
 */

#define MIB (1 << 20)
#define O_RDWR_CREAT 0102
#define O_DIRECT 040000

static char buffer[65536] __attribute__((aligned(4096)));

static long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return result;
}

static long sys_read(long fd)
{
    return call(3, fd, (long)buffer, sizeof buffer, 0, 0);
}
static long sys_write(long fd, const char *data, long size)
{
    return call(4, fd, (long)data, size, 0, 0);
}
static long sys_open(const char *path, long flags)
{
    return call(5, (long)path, flags, 0600, 0, 0);
}
static void sys_mount(const char *kind, const char *where)
{
    call(21, (long)kind, (long)where, (long)kind, 0, 0);
}

/* Copy up to `size` bytes, in whole buffers where there are any, and the last one in whole sectors. */
static void copy(long from, long to, long size)
{
    for (long n; size > 0 && (n = sys_read(from)) > 0; size -= n)
        sys_write(to, buffer, (n + 511) & -512);
}

/* Open the status port: the only one, of whichever virtio device. */
static long open_port(void)
{
    static char path[] = "/dev/vport0p1";
    long port = -1;
    for (path[10] = '0'; port < 0 && path[10] <= '9'; path[10]++)
        port = sys_open(path, 2);
    return port;
}

/* Pages of a process: `size` bytes of anonymous memory, each page another. */
static void take_memory(long size)
{
    volatile char *memory = (volatile char *)call(192, 0, size, 3, 0x22, -1); /* mmap2: private, anonymous */
    for (long at = 0; at < size; at += 4096)
        memory[at + at / 4096 % 4096] = (char)(at / 4096 + 1);
}

void _start(void)
{
    static const char done[] = "{\"event\": \"filled\"}\n";
    sys_mount("proc", "/proc");
    sys_mount("devtmpfs", "/dev");
    sys_mount("tmpfs", "/tmp");
    take_memory(32 * MIB);
    copy(sys_open("/dev/vda", 0), sys_open("/tmp/fill", O_RDWR_CREAT), 24 * MIB);
    long port = open_port();
    copy(sys_open("/proc/kpageflags", 0), sys_open("/dev/vdb", 2 | O_DIRECT), 64 * MIB);
    sys_write(port, done, sizeof done - 1);
    for (;;)
        call(29, 0, 0, 0, 0, 0); /* pause */
}

/*
 * For programs that kjump calls on the bare machine. A program is an ordinary function,
 *
 *     uint64_t name(const uint64_t *args, size_t n);
 *
 * in a file of that name (or named by `kjump call --function`). A number on the command line is one argument; a string
 * is two, an address and a length (a zero byte follows the string). There is no C library; paging maps every physical
 * address to itself; interrupts are off; an exception ends the program and is reported. Static data keep their values
 * from call to call while the program stays loaded.
 */
#ifndef KJUMP_H
#define KJUMP_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

/* memory and strings, as in C */
void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *text);

/* the result buffer: bytes that the caller gets beside the returned number */
void kjump_put(const void *data, size_t n);
/* %s %c %d %u %x %p %%, with l, ll, z, a width and a leading 0 */
void kjump_print(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* the same to the first serial port, at its current rate, or 115200 baud if none is set */
void kjump_serial(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* how many calls there have been since the program was loaded, this one included */
uint64_t kjump_calls(void);

/* physical memory at any address, also for devices */
static inline volatile uint8_t *kjump_memory(uint64_t address)
{
    return (volatile uint8_t *)(uintptr_t)address;
}

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;

    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint64_t read_msr(uint32_t number)
{
    uint32_t low, high;

    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
    return (uint64_t)high << 32 | low;
}

static inline void write_msr(uint32_t number, uint64_t value)
{
    __asm__ volatile("wrmsr" : : "c"(number), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid r;

    __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
    return r;
}

static inline uint64_t read_tsc(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

#endif

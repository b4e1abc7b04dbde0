/* The run-time of programs that kjump calls: where they begin, and what kjump.h declares. */
#include "kjump.h"

#include "call.h"

#define SERIAL 0x3f8
#define SERIAL_STATUS (SERIAL + 5)
#define SERIAL_READY 0x20
#define PATIENCE 100000u

extern uint64_t KJUMP_FUNCTION(const uint64_t *args, size_t n);

static uint8_t *block;

static volatile uint64_t *word(unsigned offset)
{
    return (volatile uint64_t *)(block + offset);
}

/* The shim calls this as a function; `call_block` (call.h) is behind the ordinary arguments. */
uint64_t _start(const uint64_t *args, size_t n, uint8_t *call_block)
{
    block = call_block;
    return KJUMP_FUNCTION(args, n);
}

uint64_t kjump_calls(void)
{
    return *word(BLOCK_CALLS);
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *start = to;

    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

void *memmove(void *to, const void *from, size_t n)
{
    uint8_t *t = to;
    const uint8_t *f = from;

    if (t <= f || t >= f + n)
        return memcpy(to, from, n);
    while (n--)
        *(volatile uint8_t *)(t + n) = f[n];
    return to;
}

void *memset(void *to, int value, size_t n)
{
    void *start = to;

    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *x = a, *y = b;

    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

size_t strlen(const char *text)
{
    const char *end = text;

    while (*end)
        end++;
    return (size_t)(end - text);
}

#ifdef __i386__
/* Compilers call these for 64-bit division, which i386 has no instruction for. */
static uint64_t divide(uint64_t a, uint64_t b, uint64_t *rest)
{
    uint64_t quotient = 0, left = 0;
    int i;

    for (i = 63; i >= 0; i--) {
        left = left << 1 | (a >> i & 1);
        if (left >= b) {
            left -= b;
            quotient |= 1ull << i;
        }
    }
    *rest = left;
    return quotient;
}

uint64_t __udivdi3(uint64_t a, uint64_t b)
{
    uint64_t rest;

    return divide(a, b, &rest);
}

uint64_t __umoddi3(uint64_t a, uint64_t b)
{
    uint64_t rest;

    divide(a, b, &rest);
    return rest;
}

uint64_t __udivmoddi4(uint64_t a, uint64_t b, uint64_t *rest)
{
    uint64_t ignored;

    return divide(a, b, rest ? rest : &ignored);
}
#endif

void kjump_put(const void *data, size_t n)
{
    uint64_t at = *word(BLOCK_OUT_LENGTH), room = *word(BLOCK_OUT_SIZE);

    *word(BLOCK_OUT_LENGTH) = at + n;
    if (at >= room)
        return;
    if (n > room - at)
        n = room - at;
    memcpy((uint8_t *)(uintptr_t)(*word(BLOCK_OUT_ADDRESS) + at), data, n);
}

static void put_char(char c)
{
    kjump_put(&c, 1);
}

static void serial_char(char c)
{
    unsigned i;

    if (c == '\n')
        serial_char('\r');
    for (i = 0; i < PATIENCE && !(in8(SERIAL_STATUS) & SERIAL_READY); i++)
        ;
    out8(SERIAL, (uint8_t)c);
}

static void put_number(void (*put)(char), uint64_t value, unsigned base, unsigned width, char fill)
{
    char digits[64];
    unsigned n = 0;

    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    for (; width > n; width--)
        put(fill);
    while (n)
        put(digits[--n]);
}

static uint64_t next_number(va_list *values, unsigned longs, int is_signed)
{
    if (longs == 0)
        return is_signed ? (uint64_t)(int64_t)va_arg(*values, int) : va_arg(*values, unsigned);
    if (longs == 1)
        return is_signed ? (uint64_t)(int64_t)va_arg(*values, long) : va_arg(*values, unsigned long);
    return va_arg(*values, uint64_t);
}

static void print_one(void (*put)(char), char kind, unsigned longs, unsigned width, char fill, va_list *values)
{
    uint64_t value;
    const char *text;

    switch (kind) {
    case 's':
        for (text = va_arg(*values, const char *); *text; text++)
            put(*text);
        return;
    case 'c':
        put((char)va_arg(*values, int));
        return;
    case 'd':
        value = next_number(values, longs, 1);
        if ((int64_t)value < 0) {
            put('-');
            value = -value;
        }
        put_number(put, value, 10, width, fill);
        return;
    case 'u':
        put_number(put, next_number(values, longs, 0), 10, width, fill);
        return;
    case 'p':
        put('0');
        put('x');
        longs = 1;
        /* fallthrough */
    case 'x':
        put_number(put, next_number(values, longs, 0), 16, width, fill);
        return;
    default:
        put(kind);
    }
}

static void print(void (*put)(char), const char *format, va_list *values)
{
    for (; *format; format++) {
        unsigned longs = 0, width = 0;
        char fill = ' ';

        if (*format != '%') {
            put(*format);
            continue;
        }
        format++;
        if (*format == '0')
            fill = '0';
        for (; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + (unsigned)(*format - '0');
        for (; *format == 'l' || *format == 'z'; format++)
            longs++;
        if (!*format)
            return;
        print_one(put, *format, longs, width, fill, values);
    }
}

void kjump_print(const char *format, ...)
{
    va_list values;

    va_start(values, format);
    print(put_char, format, &values);
    va_end(values);
}

void kjump_serial(const char *format, ...)
{
    va_list values;

    va_start(values, format);
    print(serial_char, format, &values);
    va_end(values);
}

/* Functions that kjump._core and kjump._dump have in common; each is linked with a copy. */
#include "shared.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int shared_u64(PyObject *object, void *u64)
{
    unsigned long long value = PyLong_AsUnsignedLongLong(object);
    if (value == (unsigned long long)-1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_ValueError, "%R is negative or too large", object);
        return 0;
    }
    *(uint64_t *)u64 = value;
    return 1;
}

int shared_read(int fd, uint64_t offset, uint8_t *data, uint64_t length)
{
    while (length > 0) {
        ssize_t n = pread(fd, data, length, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : ENODATA;
        offset += (uint64_t)n;
        data += n;
        length -= (uint64_t)n;
    }
    return 0;
}

int shared_write(int fd, bool seekable, uint64_t offset, const uint8_t *data, uint64_t length, uint64_t *written)
{
    for (*written = 0; *written < length;) {
        uint64_t left = length - *written;
        ssize_t n =
            seekable ? pwrite(fd, data + *written, left, (off_t)(offset + *written)) : write(fd, data + *written, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : EIO;
        *written += (uint64_t)n;
    }
    return 0;
}

uint64_t shared_next_bit(const uint8_t *bits, uint64_t at, uint64_t end, bool value)
{
    while (at < end) {
        uint64_t byte = at / 8, word = 0, bytes = MIN((end + 7) / 8 - byte, 8);
        memcpy(&word, bits + byte, bytes);
        word = (value ? word : ~word) >> (at % 8);
        if (word != 0)
            return MIN(end, at + (uint64_t)__builtin_ctzll(word));
        at = (byte + bytes) * 8;
    }
    return end;
}

/* Return the mask of the bits in [start, end) of the byte that holds bit `start`. */
static unsigned mask_of(uint64_t start, uint64_t end)
{
    uint64_t behind = (start / 8 + 1) * 8;
    return (0xffu << (start % 8)) & (0xffu >> (behind - MIN(end, behind)));
}

uint64_t shared_count_bits(const uint8_t *bits, uint64_t at, uint64_t end)
{
    uint64_t count = 0, word;
    while (at < end) {
        if (at % 8 == 0 && end - at >= 64) {
            memcpy(&word, bits + at / 8, sizeof word);
            count += (uint64_t)__builtin_popcountll(word);
            at += 64;
        } else {
            count += (uint64_t)__builtin_popcount(mask_of(at, end) & bits[at / 8]);
            at = (at / 8 + 1) * 8;
        }
    }
    return count;
}

uint64_t shared_clear_bits(uint8_t *bits, uint64_t start, uint64_t end)
{
    uint64_t count = shared_count_bits(bits, start, end);
    while (count > 0 && start < end) {
        uint64_t whole = start % 8 == 0 ? (end - start) / 8 : 0;
        if (whole > 0)
            memset(bits + start / 8, 0, whole);
        else
            bits[start / 8] &= (uint8_t)~mask_of(start, end);
        start = whole > 0 ? start + whole * 8 : (start / 8 + 1) * 8;
    }
    return count;
}

bool shared_is_zero_page(const uint8_t *page)
{
    /* Most pages that are not zeros differ in one of these places. */
    uint64_t probe[3];
    memcpy(&probe[0], page, 8);
    memcpy(&probe[1], page + 2048, 8);
    memcpy(&probe[2], page + 4088, 8);
    /* The first eight bytes are zero; a page that equals itself shifted by eight bytes is all zeros then. */
    return (probe[0] | probe[1] | probe[2]) == 0 && memcmp(page, page + 8, PAGE - 8) == 0;
}

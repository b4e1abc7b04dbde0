/*
 * Tests a range of physical memory with patterns: memtest START LENGTH. Returns how many words kept a pattern wrong;
 * the contents are put back. START and LENGTH are multiples of 8; the range must not hold this program.
 */
#include "kjump.h"

static const uint64_t patterns[] = {
    0, ~0ull, 0x5555555555555555ull, 0xaaaaaaaaaaaaaaaaull, 0x0123456789abcdefull,
};

static int test_word(volatile uint64_t *word)
{
    uint64_t kept = *word;
    int wrong = 0;
    unsigned i;

    for (i = 0; i < sizeof(patterns) / sizeof(*patterns) && !wrong; i++) {
        *word = patterns[i];
        wrong = *word != patterns[i];
    }
    if (!wrong) {
        *word = (uintptr_t)word; /* lines of an address stuck together show when two words are one */
        wrong = *word != (uintptr_t)word;
    }
    *word = kept;
    return wrong || *word != kept;
}

uint64_t memtest(const uint64_t *args, size_t n)
{
    uint64_t wrong = 0, at;

    if (n != 2 || args[0] % 8 || args[1] % 8) {
        kjump_print("usage: memtest START LENGTH, multiples of 8\n");
        return ~0ull;
    }
    for (at = args[0]; at < args[0] + args[1]; at += 8)
        if (test_word((volatile uint64_t *)(uintptr_t)at) && wrong++ < 16)
            kjump_print("wrong at 0x%llx\n", (unsigned long long)at);
    kjump_print("%llu KiB tested, %llu words wrong\n", (unsigned long long)args[1] >> 10, (unsigned long long)wrong);
    return wrong;
}

/*
 * Measures what takes the processor away although interrupts are off: system management interrupts, and a hypervisor.
 * smi [MILLIONS-OF-CYCLES [THRESHOLD]] reads the time stamp in a loop for that long, counts the gaps longer than the
 * threshold (in cycles), and prints the longest ones. Returns the longest gap.
 */
#include "kjump.h"

#define LONGEST 8

static uint64_t longest[LONGEST];

/* Keeps the longest gaps, the longest first. */
static void note(uint64_t gap)
{
    unsigned i;

    for (i = 0; i < LONGEST; i++) {
        if (gap > longest[i]) {
            uint64_t shorter = longest[i];

            longest[i] = gap;
            gap = shorter;
        }
    }
}

uint64_t smi(const uint64_t *args, size_t n)
{
    uint64_t cycles = (n > 0 ? args[0] : 100) * 1000000, threshold = n > 1 ? args[1] : 10000;
    uint64_t begun = read_tsc(), last = begun, gaps = 0, lost = 0;
    unsigned i;

    memset(longest, 0, sizeof(longest));
    while (last - begun < cycles) {
        uint64_t now = read_tsc();

        if (now - last > threshold) {
            gaps++;
            lost += now - last;
        }
        if (now - last > longest[LONGEST - 1])
            note(now - last);
        last = now;
    }
    kjump_print("%llu gaps above %llu cycles, %llu cycles lost in %llu; the longest:", (unsigned long long)gaps,
                (unsigned long long)threshold, (unsigned long long)lost, (unsigned long long)(last - begun));
    for (i = 0; i < LONGEST && longest[i]; i++)
        kjump_print(" %llu", (unsigned long long)longest[i]);
    kjump_print("\n");
    return longest[0];
}

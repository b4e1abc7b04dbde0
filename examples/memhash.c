/*
 * Hashes physical memory: memhash START LENGTH [START LENGTH ...] returns the 64-bit FNV-1a of the words of all ranges,
 * which are multiples of 8. It reads memory as it is while the program runs: this program and what its segments
 * displaced lie where they lie.
 */
#include "kjump.h"

uint64_t memhash(const uint64_t *args, size_t n)
{
    uint64_t hash = 0xcbf29ce484222325ull, at;

    for (; n >= 2; n -= 2, args += 2)
        for (at = args[0]; at < args[0] + args[1]; at += 8)
            hash = (hash ^ *(volatile uint64_t *)(uintptr_t)at) * 0x100000001b3ull;
    return hash;
}

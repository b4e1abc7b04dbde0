/*
 * Reads the CPU: `cpu` prints its vendor and name and returns the highest CPUID leaf; `cpu 0x1b 0x10` prints those
 * model-specific registers and returns the last one. A register that does not exist ends the program.
 */
#include "kjump.h"

static uint64_t identify(void)
{
    struct cpuid zero = cpuid(0, 0);
    uint32_t vendor[4] = {zero.ebx, zero.edx, zero.ecx, 0};
    struct cpuid one = cpuid(1, 0);

    kjump_print("%s, signature 0x%08x, features 0x%08x 0x%08x\n", (char *)vendor, one.eax, one.edx, one.ecx);
    if (cpuid(0x80000000, 0).eax >= 0x80000004) {
        uint32_t name[13] = {0};
        unsigned i;

        for (i = 0; i < 3; i++) {
            struct cpuid part = cpuid(0x80000002 + i, 0);

            memcpy(name + 4 * i, &part, sizeof(part));
        }
        kjump_print("%s\n", (char *)name);
    }
    return zero.eax;
}

uint64_t cpu(const uint64_t *args, size_t n)
{
    uint64_t value = 0;
    size_t i;

    if (n == 0)
        return identify();
    for (i = 0; i < n; i++) {
        value = read_msr((uint32_t)args[i]);
        kjump_print("MSR 0x%x = 0x%016llx\n", (unsigned)args[i], (unsigned long long)value);
    }
    return value;
}

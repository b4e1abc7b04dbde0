/*
 * A program for BIOS calls: one interrupt with given registers and a buffer, or the whole memory map. The output is the
 * registers after the interrupt and the buffer, or the entries of the map; the value is the flags (bit 0: carry).
 */
#include "kjump.h"

#include "bios.h"

/* real16.S: makes interrupt `number` in real mode with bios_registers, and stores the registers after it there. */
extern void bios_interrupt(uint8_t number);
extern struct bios_registers bios_registers;

#define SMAP 0x534d4150
#define CARRY 1u
#define E820_ENTRY 20
#define E820_MOST 1000

static uint8_t *const buffer = (uint8_t *)BIOS_BUFFER;

static uint64_t interrupt(const uint64_t *args, size_t n)
{
    uint32_t *registers = (uint32_t *)&bios_registers;
    unsigned i;

    if (n != 13 || args[12] > BIOS_BUFFER_SIZE)
        return ~0ull;
    memset(buffer, 0, BIOS_BUFFER_SIZE);
    memcpy(buffer, (const void *)(uintptr_t)args[11], args[12]);
    for (i = 0; i < 9; i++)
        registers[i] = (uint32_t)args[2 + i];
    bios_interrupt((uint8_t)args[1]);
    kjump_put(&bios_registers, sizeof(bios_registers));
    kjump_put(buffer, BIOS_BUFFER_SIZE);
    return bios_registers.flags;
}

/* INT 15h, EAX = E820h (ACPI specification, chapter 15): EBX is passed from call to call, 0 after the last entry. */
static uint64_t memory_map(void)
{
    unsigned i;

    memset(&bios_registers, 0, sizeof(bios_registers));
    for (i = 0; i < E820_MOST; i++) {
        bios_registers.eax = 0xe820;
        bios_registers.ecx = E820_ENTRY;
        bios_registers.edx = SMAP;
        bios_registers.es = BIOS_BUFFER >> 4;
        bios_registers.edi = 0;
        bios_interrupt(0x15);
        if (bios_registers.eax != SMAP || bios_registers.flags & CARRY)
            return i ? 0 : CARRY;
        kjump_put(buffer, E820_ENTRY);
        if (!bios_registers.ebx)
            return 0;
    }
    return 0;
}

uint64_t bios(const uint64_t *args, size_t n)
{
    if (n && args[0] == BIOS_COMMAND_E820)
        return memory_map();
    return interrupt(args, n);
}

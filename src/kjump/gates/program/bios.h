/* What bios.c, real16.S and kjump/call/bios.py share: the registers of a BIOS call, and where its scratch lies. */
#ifndef KJUMP_BIOS_H
#define KJUMP_BIOS_H

#define BIOS_STACK 0xb000 /* upwards to BIOS_BUFFER; the stack begins at its end */
#define BIOS_BUFFER 0xd000
#define BIOS_BUFFER_SIZE 0x2000
#define BIOS_END 0xf000

/* Offsets of 32-bit words in struct bios_registers */
#define BIOS_EAX 0
#define BIOS_EBX 4
#define BIOS_ECX 8
#define BIOS_EDX 12
#define BIOS_ESI 16
#define BIOS_EDI 20
#define BIOS_EBP 24
#define BIOS_DS 28
#define BIOS_ES 32
#define BIOS_FLAGS 36

#define BIOS_COMMAND_INT 0  /* args: command, interrupt, EAX..EBP, DS, ES, buffer's address and length */
#define BIOS_COMMAND_E820 1 /* args: command */

#ifndef __ASSEMBLER__
#include <stdint.h>

struct bios_registers {
    uint32_t eax, ebx, ecx, edx, esi, edi, ebp, ds, es, flags;
};

/* real16.S: interrupt `number` in real mode with these registers, which are replaced by what it leaves in them. */
extern void bios_interrupt(uint8_t number);
extern struct bios_registers bios_registers;
#endif

#endif

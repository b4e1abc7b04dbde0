/*
 * The data page half of the emulated kernel's control page: offsets that the control code (control64.S, control32.S)
 * and kjump/emulator/linux.py share. All are u64, on i386 too, save the
 * entries of the indirection list, which are words of the architecture.
 */
#ifndef KJUMP_CONTROL_H
#define KJUMP_CONTROL_H

#define CONTROL_PAGE_SIZE 0x1000
#define CONTROL_RELOCATE 0x010 /* the kernel calls this; what returns to an i386 kernel enters at 0 */

/* Filled in before a jump. */
#define CONTROL_VIRTUAL 0x800   /* linear address of this page in the kernel */
#define CONTROL_TABLES 0x808    /* root of page tables that map memory to itself, and this page at both places */
#define CONTROL_SWAP_PAGE 0x810 /* three copies make a swap: this is the third place; then it is the callee's stack */
#define CONTROL_HEAD 0x818      /* first entry of the indirection list */
#define CONTROL_START 0x820     /* where to jump; after a return, where to jump next time */
#define CONTROL_FLAGS 0x828
#define CONTROL_PHYSICAL 0x830 /* physical address of this page */

#define CONTROL_FLAG_PRESERVE 1   /* swap, call and come back; else copy, jump and forget */
#define CONTROL_FLAG_PUSH_START 2 /* x86_64 from 6.14 on: the stack begins with the start address */
#define CONTROL_FLAG_SS_FIRST 4   /* x86_64 before 6.13: SS is loaded again before GDTR */

/* Kept by the control code itself. */
#define CONTROL_SP 0x840
#define CONTROL_CR0 0x848
#define CONTROL_CR3 0x850
#define CONTROL_CR4 0x858
#define CONTROL_GDT 0x868 /* ten bytes each; the limits at +6 so that the bases are aligned */
#define CONTROL_IDT 0x878

#define CONTROL_STACK 0x1000

#define IND_DESTINATION 1
#define IND_INDIRECTION 2
#define IND_DONE 4
#define IND_SOURCE 8

#define KERNEL_CS 0x10
#define KERNEL_DS 0x18
#define KERNEL32_CS 0x60
#define KERNEL32_DS 0x68

#define A_STOP 0x40 /* where the code of A (a64.S, a32.S) comes to rest */

#endif

/*
 * The gate's binary interface: fixed offsets into the flat binary, shared by the assembly and by Python
 * (kjump/gates/__init__.py reads this file's numbers in a test, so that the two cannot drift apart).
 *
 * The gate is position independent. It is loaded at a page boundary in the window of the second kernel, in
 * the part that no kernel owns, and is entered by a kernel's kexec code in 64-bit mode, interrupts off,
 * with the CPU's own idea of GDT and IDT invalid.
 */
#ifndef KJUMP_GATE_H
#define KJUMP_GATE_H

#define GATE_SIZE 0x2000 /* bytes of code, data and stack: two pages */

#define GATE_ENTRY 0x000    /* A's kernel comes in here, first time and again */
#define GATE_WAY_BACK 0x010 /* B's or C's kernel comes in here, to leave for A for good */
#define GATE_CRASH 0x020    /* B's kernel comes in here when it has panicked, on any of its CPUs */
#define GATE_SWITCH 0x030   /* B comes in here through its door, to leave for A and be re-entered later */

#define GATE_MAGIC 0x040         /* u64 "KJGATE1\0" */
#define GATE_FLAGS 0x048         /* u64 GATE_FLAG_* */
#define GATE_CR3_4LEVEL 0x050    /* u64 physical address of our PML4 */
#define GATE_CR3_5LEVEL 0x058    /* u64 physical address of our PML5 */
#define GATE_PEER_ENTRY 0x060    /* u64 physical address where the peer begins */
#define GATE_PEER_ARGUMENT 0x068 /* u64 what the peer finds in RSI (a kernel: its boot_params) */
#define GATE_STATE 0x070         /* u64 GATE_STATE_* */
#define GATE_A_ENTRY 0x078       /* u64 physical address at which A wants to be re-entered */
#define GATE_A_STACK 0x080       /* u64 RSP as A's kernel gave it; it points at A_ENTRY */
#define GATE_A_CR0 0x088         /* u64 control registers as A's kernel left them */
#define GATE_A_CR3 0x090
#define GATE_A_CR4 0x098
#define GATE_A_EFER 0x0a0
#define GATE_A_GDT_BASE 0x0a8   /* u64 linear address, in A, of CPU 0's GDT */
#define GATE_A_GDT_LIMIT 0x0b0  /* u64 its limit */
#define GATE_NEXT_ENTRY 0x0b8   /* u64 what A finds on its stack: where it jumps next time */
#define GATE_MAILBOX 0x0c0      /* u64 physical address of the mailbox, a page of A; 0: none */
#define GATE_COOKIE 0x0c8       /* 16 bytes: what the mailbox must begin with */
#define GATE_TSC_IN 0x0d8       /* u64 time stamp when A came in */
#define GATE_TSC_OUT 0x0e0      /* u64 time stamp when the way back was taken */
#define GATE_A_APIC 0x0e8       /* u64 local APIC id of the CPU that A came in on, and must go on on */
#define GATE_LOW_PAGE 0x0f0     /* u64 a page below 1 MiB that is the peer's: a CPU starts there in real mode */
#define GATE_RESTORE 0x0f8      /* u64 physical address of a page list: put in place before A is entered; 0: none */
#define GATE_B_ENTRY 0x100      /* u64 physical address at which a parked B wants to be re-entered */
#define GATE_B_STACK 0x108      /* u64 RSP as B's kernel gave it; it points at B_ENTRY */
#define GATE_B_GDT_BASE 0x110   /* u64 linear address, in B, of B's CPU 0's GDT */
#define GATE_B_GDT_LIMIT 0x118  /* u64 its limit */
#define GATE_B_NEXT_ENTRY 0x120 /* u64 what B finds on its stack: its door */
#define GATE_SWITCHES 0x128     /* u64 how often the peer has been entered */
#define GATE_B_EFER 0x130       /* u64 EFER as B's kernel left it */

#define GATE_FIELDS_END 0x180 /* the gate's own data begins here */

#define GATE_FLAG_INIT_CPUS 1   /* send INIT to all other CPUs before going on */
#define GATE_FLAG_RESIDENT 2    /* the peer is there for every entry, not for the first alone: start it each time */
#define GATE_FLAG_DESCRIPTORS 4 /* give A's segment registers, their bases, GDTR and IDTR back as they came in */
#define GATE_FLAG_PAE 8         /* i386: A's page tables are PAE's, so CR4.PAE must be set before A turns paging on */
#define GATE_FLAG_CHOOSE 32     /* the mailbox names the gate that A wants (MAILBOX_WANTED) */

#define GATE_STATE_FRESH 0   /* nobody has come in yet: the peer is to be started */
#define GATE_STATE_ENTERED 1 /* the peer runs or has run; a further entry finds nobody */
#define GATE_STATE_PARKED 2  /* the peer has left by its door and is to be re-entered where it left */

/* The mailbox: the first bytes of a page of A. The rest is the report, written by B or C (see mailbox.py). */
#define MAILBOX_COOKIE 0x000  /* 16 bytes, random, chosen by A */
#define MAILBOX_OUTCOME 0x010 /* u64 MAILBOX_OUTCOME_* */
#define MAILBOX_RESTART 0xff0 /* u64 physical address of a page list: start the peer anew from it; 0: do not */
#define MAILBOX_WANTED 0xff8  /* u64 physical address of the gate A wants to go through; 0: the first */

#define MAILBOX_OUTCOME_NONE 0  /* as A left it */
#define MAILBOX_OUTCOME_GONE 1  /* A came in, but the peer is not there any more */
#define MAILBOX_OUTCOME_PANIC 6 /* the peer's kernel panicked (2 to 5 are said by the peer's programs) */

/* A page list: for each run of pages where it lies and where it belongs (physical addresses); no pages end it. */
#define PAGE_LIST_FROM 0x00  /* u64 */
#define PAGE_LIST_TO 0x08    /* u64 */
#define PAGE_LIST_PAGES 0x10 /* u64 */
#define PAGE_LIST_ENTRY 0x18

/*
 * The door: a page of its own through which a resident B leaves. B's kernel swaps that page with one of B's whenever
 * B leaves and comes back, so nothing may change in it; what changes is in the gate, which B's kernel does not touch.
 * B's identity map has the door, but need not have the gate.
 */
#define DOOR_SIZE 0x1000
#define DOOR_CR3_4LEVEL 0x040 /* u64 roots of the gate's page tables */
#define DOOR_CR3_5LEVEL 0x048
#define DOOR_GATE 0x050      /* u64 physical address of an entry: SWITCH, WAY_BACK, CRASH */
#define DOOR_GDT_BASE 0x058  /* u64 for GATE_B_GDT_BASE, in R8 */
#define DOOR_GDT_LIMIT 0x060 /* u64 for GATE_B_GDT_LIMIT, in R9; the door's own address is in R10 */

#endif

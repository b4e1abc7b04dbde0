/*
 * The x86_64 gate: the small program at both ends of every jump. gate.h has its interface.
 *
 * entry     A's kernel calls this with the return address on a stack of one page (the kernel's swap page).
 *           We note how A wants to be re-entered, quiet A's other CPUs, put our own tables under the CPU
 *           and start the peer. RSP, [RSP] and the control registers are A's; all else is ours to spoil.
 * way_back  B's (or C's) kernel calls this by an ordinary kexec. Its identity map covers its own RAM only,
 *           so before A's control page can be touched our own tables must be loaded: they map all of RAM.
 *           Then A is entered exactly as its kernel expects a callee to return: the return address
 *           popped, our next entry pushed in its place. (A plain `ret` would leave RSP one word above the
 *           page on kernels before 6.14, and they then read the next entry from a foreign page.)
 */
#include "gate.h"

#define MSR_APIC_BASE     0x1b
#define MSR_X2APIC_ICR    0x830
#define MSR_EFER          0xc0000080
#define MSR_FS_BASE       0xc0000100
#define MSR_GS_BASE       0xc0000101
#define MSR_KERNEL_GS     0xc0000102
#define APIC_ICR_LOW      0x300
#define APIC_ICR_HIGH     0x310
#define ICR_INIT_OTHERS   0xc4500 /* INIT, level assert, all excluding self */
#define ICR_BUSY          (1 << 12)
#define CR4_LA57_BIT      12
#define BOOT_CS           0x10 /* the selectors that the Linux boot protocol asks for */
#define BOOT_DS           0x18

	.code64
	.section .text, "ax"
	.globl _start
_start:
	.org GATE_ENTRY
	jmp	entry
	.org GATE_WAY_BACK
	jmp	way_back

	.org GATE_MAGIC
	.ascii	"KJGATE1\0"
	.org GATE_TSC_OUT + 8

	.balign 16
gdt:
	.quad	0
	.quad	0
	.quad	0x00af9a000000ffff /* 0x10: 64-bit code */
	.quad	0x00cf92000000ffff /* 0x18: flat data */
gdt_end:
	.balign 8
	.word	0, 0, 0
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	0 /* filled in when it is known where we are */
	.balign 8
	.word	0, 0, 0
a_gdt_pointer:
	.word	0
	.quad	0
	.balign 8
	.word	0, 0, 0
no_idt:
	.word	0
	.quad	0
	/* What GATE_FLAG_DESCRIPTORS keeps of A. */
	.balign 8
kept_bases:
	.quad	0, 0, 0 /* FS, GS, KERNEL_GS */
kept_selectors:
	.word	0, 0, 0, 0 /* DS, ES, FS, GS */
	.word	0, 0, 0
kept_gdt:
	.word	0
	.quad	0
	.word	0, 0, 0
kept_idt:
	.word	0
	.quad	0

	.balign 16
entry:
	cli
	cld
	leaq	_start(%rip), %rbx
	testq	$GATE_FLAG_RESIDENT, GATE_FLAGS(%rbx)
	jnz	1f
	cmpq	$GATE_STATE_FRESH, GATE_STATE(%rbx)
	jne	nobody_there
1:
	movq	$GATE_STATE_ENTERED, GATE_STATE(%rbx)

	call	note_time
	movq	%rax, GATE_TSC_IN(%rbx)
	movq	%rsp, GATE_A_STACK(%rbx)
	movq	(%rsp), %rax
	movq	%rax, GATE_A_ENTRY(%rbx)
	movq	%cr0, %rax
	movq	%rax, GATE_A_CR0(%rbx)
	movq	%cr3, %rax
	movq	%rax, GATE_A_CR3(%rbx)
	movq	%cr4, %rax
	movq	%rax, GATE_A_CR4(%rbx)
	movl	$MSR_EFER, %ecx
	rdmsr
	shlq	$32, %rdx
	orq	%rdx, %rax
	movq	%rax, GATE_A_EFER(%rbx)
	call	keep_descriptors

	call	own_tables
	leaq	GATE_SIZE(%rbx), %rsp
	testq	$GATE_FLAG_INIT_CPUS, GATE_FLAGS(%rbx)
	jz	1f
	call	init_other_cpus
1:
	/* The peer gets what the Linux 64-bit boot protocol promises: selectors 0x10/0x18, RSI, IF clear. */
	movq	GATE_PEER_ENTRY(%rbx), %rdi
	movq	GATE_PEER_ARGUMENT(%rbx), %rsi
	pushq	$BOOT_CS
	pushq	%rdi
	xorl	%eax, %eax
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	xorl	%ebx, %ebx
	lretq

/*
 * A jumped again although the peer has left for good (its memory is no longer a kernel). Say so in the
 * mailbox and go straight back. A's tables and stack are in force: nothing of the CPU has been changed.
 */
nobody_there:
	call	find_mailbox
	jnz	1f
	movq	$MAILBOX_OUTCOME_GONE, MAILBOX_OUTCOME(%rdi)
1:
	movq	%rsp, GATE_A_STACK(%rbx)
	movq	(%rsp), %rax
	movq	%rax, GATE_A_ENTRY(%rbx)
	jmp	return_to_a

way_back:
	cli
	cld
	leaq	_start(%rip), %rbx
	leaq	GATE_SIZE(%rbx), %rsp
	call	own_tables
	call	note_time
	movq	%rax, GATE_TSC_OUT(%rbx)
	testq	$GATE_FLAG_INIT_CPUS, GATE_FLAGS(%rbx)
	jz	return_to_a
	call	init_other_cpus

/*
 * Kernels before 6.13 load SS while the GDT is still the invalid one: #GP, and nobody to take it. GDTR takes
 * a linear address that means something only under A's page tables, which is when it is used. Harmless on
 * kernels that load their own GDT first, so it is always done.
 */
return_to_a:
	call	give_descriptors_back
	movq	GATE_A_GDT_BASE(%rbx), %rax
	testq	%rax, %rax
	jz	1f
	movq	%rax, a_gdt_pointer + 2(%rip)
	movq	GATE_A_GDT_LIMIT(%rbx), %rax
	movw	%ax, a_gdt_pointer(%rip)
	lgdt	a_gdt_pointer(%rip)
1:
	movq	GATE_A_STACK(%rbx), %rsp
	addq	$8, %rsp
	pushq	GATE_NEXT_ENTRY(%rbx)
	movq	GATE_A_ENTRY(%rbx), %rax
	jmp	*%rax

/* Load our page tables (as many levels as the CPU is using), GDT, no IDT, flat data segments. Spoils RAX, RCX. */
own_tables:
	leaq	gdt(%rip), %rax
	movq	%rax, gdt_pointer + 2(%rip)
	lgdt	gdt_pointer(%rip)
	lidt	no_idt(%rip)
	movl	$BOOT_DS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	movq	%cr4, %rax
	movq	GATE_CR3_4LEVEL(%rbx), %rcx
	btq	$CR4_LA57_BIT, %rax
	jnc	1f
	movq	GATE_CR3_5LEVEL(%rbx), %rcx
1:
	popq	%rax /* the stack may be mapped by the old tables only */
	movq	%rcx, %cr3
	jmp	*%rax

/* Keep A's descriptor state when the flags ask for it. Spoils RAX, RCX, RDX. */
keep_descriptors:
	testq	$GATE_FLAG_DESCRIPTORS, GATE_FLAGS(%rbx)
	jz	1f
	sgdt	kept_gdt(%rip)
	sidt	kept_idt(%rip)
	movw	%ds, kept_selectors(%rip)
	movw	%es, kept_selectors + 2(%rip)
	movw	%fs, kept_selectors + 4(%rip)
	movw	%gs, kept_selectors + 6(%rip)
	.macro	keep_msr msr, at
	movl	$\msr, %ecx
	rdmsr
	movl	%eax, \at(%rip)
	movl	%edx, \at + 4(%rip)
	.endm
	keep_msr MSR_FS_BASE, kept_bases
	keep_msr MSR_GS_BASE, kept_bases + 8
	keep_msr MSR_KERNEL_GS, kept_bases + 16
1:
	ret

/*
 * Selectors first (our GDT has the same flat segments at the same selectors), then the bases, which loading a
 * selector clears; the tables last. GDTR is given its cure after this, if A asked for it. Spoils RAX, RCX, RDX.
 */
give_descriptors_back:
	testq	$GATE_FLAG_DESCRIPTORS, GATE_FLAGS(%rbx)
	jz	1f
	.macro	give_selector register, at
	movzwl	\at(%rip), %eax
	cmpl	$gdt_end - gdt, %eax
	ja	2f
	movl	%eax, \register
2:
	.endm
	give_selector %ds, kept_selectors
	give_selector %es, kept_selectors + 2
	give_selector %fs, kept_selectors + 4
	give_selector %gs, kept_selectors + 6
	.macro	give_msr msr, at
	movl	$\msr, %ecx
	movl	\at(%rip), %eax
	movl	\at + 4(%rip), %edx
	wrmsr
	.endm
	give_msr MSR_FS_BASE, kept_bases
	give_msr MSR_GS_BASE, kept_bases + 8
	give_msr MSR_KERNEL_GS, kept_bases + 16
	lidt	kept_idt(%rip)
	lgdt	kept_gdt(%rip)
1:
	ret

/*
 * INIT to every CPU but this one. A CPU parked in MWAIT wakes when the line it watches is written, and then
 * runs whatever now lies where its code was; one that waits for SIPI does not. The kernel that
 * is entered next starts its other CPUs by INIT and SIPI in any case. Spoils RAX, RCX, RDX.
 */
init_other_cpus:
	movl	$MSR_APIC_BASE, %ecx
	rdmsr
	btl	$11, %eax /* the local APIC is off: no way to send, and nobody to send to */
	jnc	3f
	btl	$10, %eax
	jc	2f
	shlq	$32, %rdx
	orq	%rdx, %rax
	andq	$~0xfff, %rax
	movl	$0, APIC_ICR_HIGH(%rax)
	movl	$ICR_INIT_OTHERS, APIC_ICR_LOW(%rax)
	movl	$1000000, %ecx
1:
	testl	$ICR_BUSY, APIC_ICR_LOW(%rax)
	jz	3f
	pause
	decl	%ecx
	jnz	1b
	jmp	3f
2:
	movl	$MSR_X2APIC_ICR, %ecx
	movl	$ICR_INIT_OTHERS, %eax
	xorl	%edx, %edx
	wrmsr
3:
	ret

/* RDI = the mailbox and ZF set when it is there and begins with the cookie; else ZF clear. Spoils RAX. */
find_mailbox:
	movq	GATE_MAILBOX(%rbx), %rdi
	testq	%rdi, %rdi
	jz	1f
	movq	GATE_COOKIE(%rbx), %rax
	cmpq	MAILBOX_COOKIE(%rdi), %rax
	jne	2f
	movq	GATE_COOKIE + 8(%rbx), %rax
	cmpq	MAILBOX_COOKIE + 8(%rdi), %rax
	ret
1:
	orl	$1, %eax
2:
	ret

/* RAX = the time stamp counter. Spoils RDX. */
note_time:
	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	ret

	.org GATE_SIZE

	.section .note.GNU-stack, "", @progbits

/*
 * The x86_64 gate: the small program at both ends of every jump. layouts.py has its interface (gate.h).
 *
 * entry     A's kernel calls this with the return address on a stack of one page (the kernel's swap page).
 *           We note how A wants to be re-entered, quiet A's other CPUs, put our own tables under the CPU
 *           and start the peer. RSP, [RSP] and the control registers are A's; all else is ours to spoil.
 * way_back  B's (or C's) kernel calls this by an ordinary kexec. Its identity map covers its own RAM only,
 *           so before A's control page can be touched our own tables must be loaded: they map all of RAM.
 *           Then A is entered exactly as its kernel expects a callee to return: the return address
 *           popped, our next entry pushed in its place. (A plain `ret` would leave RSP one word above the
 *           page on kernels before 6.14, and they then read the next entry from a foreign page.)
 *           With GATE_RESTORE it is a boot kernel that calls this: what it has read of A lies aside, and is put in
 *           place first.
 * crash     B's kernel calls this when it panics, through a door that is loaded in its crash slot. Nothing has been
 *           quieted then, and it may be any of B's CPUs. A goes on on the CPU it left, with B's devices silenced.
 * switch    B's kernel calls this, through the door, as A's kernel calls entry: with the return address on a
 *           stack of one page. We note how B wants to be re-entered and go to A; entry then goes back to B.
 *
 * A kernel restores most of its CPU itself; docs/protocol.md has the list. What it takes for granted until then is given
 * to it here: levels of paging, EFER, CR0.WP, GDTR, and CET switched off.
 *
 * Several peers have a gate each in one loaded image. A always enters the first, which passes on to the one
 * that the mailbox names.
 */
#include "gate.h"

#define MSR_APIC_BASE     0x1b
#define MSR_U_CET         0x6a0
#define MSR_S_CET         0x6a2
#define MSR_X2APIC_ICR    0x830
#define MSR_EFER          0xc0000080
#define MSR_FS_BASE       0xc0000100
#define MSR_GS_BASE       0xc0000101
#define MSR_KERNEL_GS     0xc0000102
#define APIC_ICR_LOW      0x300
#define APIC_ICR_HIGH     0x310
#define ICR_INIT          0x04500 /* INIT, level assert, to the CPU named */
#define ICR_INIT_OTHERS   0xc4500 /* the same to all excluding self */
#define ICR_STARTUP       0x04600 /* start-up at the page in the low byte */
#define ICR_BUSY          (1 << 12)
#define CPUID_FEATURES    7
#define CPUID_ECX_SHSTK   (1 << 7) /* of leaf 7 */
#define CPUID_EDX_IBT     (1 << 20)
#define CR0_PE            (1 << 0)
#define CR0_ET            (1 << 4)
#define CR0_WP_BIT        16
#define CR0_PG            (1 << 31)
#define CR4_PAE           (1 << 5)
#define CR4_LA57          (1 << 12)
#define CR4_LA57_BIT      12
#define EFER_LME          (1 << 8)
#define EFER_LMA          (1 << 10)
#define BOOT_CS           0x10 /* the selectors that the Linux boot protocol asks for */
#define BOOT_DS           0x18
#define FLAT32_CS         0x20

#define PCI_ADDRESS       0xcf8 /* configuration mechanism 1: bit 31, bus 23-16, device 15-11, function 10-8 */
#define PCI_DATA          0xcfc
#define PCI_COMMAND       0x04
#define PCI_COMMAND_MASTER (1 << 2)
#define PCI_HEADER        0x0c
#define PCI_MULTIFUNCTION (1 << 23)
#define I6300ESB_ID       0x25ab8086
#define I6300ESB_LOCK     0x68 /* its byte that switches the watchdog on (bit 1) */

#define CMOS_INDEX        0x70
#define CMOS_DATA         0x71
#define CMOS_SHUTDOWN     0x8f /* the shutdown status byte, NMI disabled meanwhile */
#define SHUTDOWN_JUMP     0x0a /* the firmware then starts a reset CPU at the far pointer in WARM_RESET */
#define WARM_RESET        0x467
#define RESET_PORT        0xcf9

	.code64
	.section .text, "ax"
	.globl _start
_start:
	.org GATE_ENTRY
	jmp	entry
	.org GATE_WAY_BACK
	jmp	way_back
	.org GATE_CRASH
	jmp	crash
	.org GATE_SWITCH
	jmp	switch

	.org GATE_MAGIC
	.ascii	"KJGATE1\0"
	.org GATE_FIELDS_END

	.balign 16
gdt:
	.quad	0
	.quad	0
	.quad	0x00af9a000000ffff /* 0x10: 64-bit code */
	.quad	0x00cf92000000ffff /* 0x18: flat data */
	.quad	0x00cf9a000000ffff /* 0x20: 32-bit code */
gdt_end:
	.balign 8
	.word	0, 0, 0
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	0 /* filled in when it is known where we are */
	.balign 8
	.word	0, 0, 0
kernel_gdt_pointer:
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
	xorl	%r13d, %r13d
	testq	$GATE_FLAG_CHOOSE, GATE_FLAGS(%rbx)
	jz	.Lby_state
	call	find_mailbox
	jnz	.Lby_state
	movq	MAILBOX_WANTED(%rdi), %rax
	testq	%rax, %rax
	jz	.Lby_state
	cmpq	%rbx, %rax
	je	.Lthis_gate
	jmp	*%rax /* GATE_ENTRY of the gate that is wanted; all is as A left it */
.Lthis_gate:
	movq	MAILBOX_RESTART(%rdi), %r13
	movl	$GATE_STATE_FRESH, %r12d
	testq	%r13, %r13
	jnz	.Lstart_peer
.Lby_state:
	movq	GATE_STATE(%rbx), %r12
	cmpq	$GATE_STATE_PARKED, %r12
	je	.Lstart_peer
	testq	$GATE_FLAG_RESIDENT, GATE_FLAGS(%rbx)
	jnz	.Lstart_peer
	cmpq	$GATE_STATE_FRESH, %r12
	jne	nobody_there
.Lstart_peer:
	movq	$GATE_STATE_ENTERED, GATE_STATE(%rbx)
	incq	GATE_SWITCHES(%rbx)

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
	call	read_efer
	movq	%rax, GATE_A_EFER(%rbx)
	call	keep_descriptors
	call	apic_id
	movq	%rax, GATE_A_APIC(%rbx)

	call	own_tables
	leaq	GATE_SIZE(%rbx), %rsp
	testq	$GATE_FLAG_INIT_CPUS, GATE_FLAGS(%rbx)
	jz	.Lentry_cpus_quiet
	call	init_other_cpus
.Lentry_cpus_quiet:
	cmpq	$GATE_STATE_PARKED, %r12
	je	return_to_b
	testq	%r13, %r13
	jz	.Lentry_in_place
	call	copy_pages
.Lentry_in_place:
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
	jnz	.Lnobody_told
	movq	$MAILBOX_OUTCOME_GONE, MAILBOX_OUTCOME(%rdi)
.Lnobody_told:
	movq	%rsp, GATE_A_STACK(%rbx)
	movq	(%rsp), %rax
	movq	%rax, GATE_A_ENTRY(%rbx)
	jmp	return_to_a

/* By the door: our tables are in force already, R8 and R9 are B's GDT, R10 is the door. RSP and [RSP] are B's. */
switch:
	leaq	_start(%rip), %rbx
	movq	%rsp, GATE_B_STACK(%rbx)
	movq	(%rsp), %rax
	movq	%rax, GATE_B_ENTRY(%rbx)
	movq	%r8, GATE_B_GDT_BASE(%rbx)
	movq	%r9, GATE_B_GDT_LIMIT(%rbx)
	movq	%r10, GATE_B_NEXT_ENTRY(%rbx)
	call	read_efer
	movq	%rax, GATE_B_EFER(%rbx)
	movq	$GATE_STATE_PARKED, GATE_STATE(%rbx)
	jmp	leave

way_back:
	leaq	_start(%rip), %rbx
leave:
	cli
	cld
	leaq	GATE_SIZE(%rbx), %rsp
	call	own_tables
	call	levels_of_a
	call	note_time
	movq	%rax, GATE_TSC_OUT(%rbx)
	testq	$GATE_FLAG_INIT_CPUS, GATE_FLAGS(%rbx)
	jz	.Lleave_cpus_quiet
	call	init_other_cpus
.Lleave_cpus_quiet:
	movq	GATE_RESTORE(%rbx), %r13
	testq	%r13, %r13
	jz	return_to_a
	call	silence_devices
	call	copy_pages
	jmp	return_to_a

crash:
	cli
	cld
	leaq	_start(%rip), %rbx
	leaq	GATE_SIZE(%rbx), %rsp
	call	own_tables
	call	apic_id
	cmpq	GATE_A_APIC(%rbx), %rax
	jne	hand_over
	call	levels_of_a
crash_on_cpu_of_a:
	call	own_tables
	call	init_other_cpus
	call	silence_devices
	call	note_time
	movq	%rax, GATE_TSC_OUT(%rbx)
	call	find_mailbox
	jnz	return_to_a
	movq	$MAILBOX_OUTCOME_PANIC, MAILBOX_OUTCOME(%rdi)

return_to_a:
	call	cet_off
	movq	GATE_A_EFER(%rbx), %rdi
	call	give_efer_back
	call	give_descriptors_back
	movq	GATE_A_GDT_BASE(%rbx), %rax
	movq	GATE_A_GDT_LIMIT(%rbx), %rcx
	movq	GATE_A_STACK(%rbx), %rsi
	movq	GATE_NEXT_ENTRY(%rbx), %rdi
	movq	GATE_A_ENTRY(%rbx), %rdx
	jmp	return_to_kernel

return_to_b:
	movq	GATE_B_EFER(%rbx), %rdi
	call	give_efer_back
	movq	GATE_B_GDT_BASE(%rbx), %rax
	movq	GATE_B_GDT_LIMIT(%rbx), %rcx
	movq	GATE_B_STACK(%rbx), %rsi
	movq	GATE_B_NEXT_ENTRY(%rbx), %rdi
	movq	GATE_B_ENTRY(%rbx), %rdx

/*
 * Enter a kernel at RDX as if what it called returned, RSI being its stack then, with RDI as its next entry.
 *
 * Kernels before 6.13 load SS while the GDT is still the invalid one: #GP, and nobody to take it. GDTR (RAX, limit
 * RCX) takes a linear address that means something only under the kernel's own page tables, which is when it is
 * used. Harmless on kernels that load their own GDT first, so it is always done.
 *
 * The kernel restores CR4 before CR0, and CR4.CET cannot be set while CR0.WP is clear, as the kernel left it (6.1 and
 * 6.12, read). All that is written until CR0 is restored, the swapped pages above all, is mapped writable by the
 * kernel's identity tables and by ours.
 */
return_to_kernel:
	testq	%rax, %rax
	jz	.Lgdt_given
	movq	%rax, kernel_gdt_pointer + 2(%rip)
	movw	%cx, kernel_gdt_pointer(%rip)
	lgdt	kernel_gdt_pointer(%rip)
.Lgdt_given:
	movq	%cr0, %rax
	btsq	$CR0_WP_BIT, %rax
	movq	%rax, %cr0
	leaq	8(%rsi), %rsp
	pushq	%rdi
	jmp	*%rdx

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
	jnc	.Lown_levels
	movq	GATE_CR3_5LEVEL(%rbx), %rcx
.Lown_levels:
	popq	%rax /* the stack may be mapped by the old tables only */
	movq	%rcx, %cr3
	jmp	*%rax

/* RAX = EFER. Spoils RCX, RDX. */
read_efer:
	movl	$MSR_EFER, %ecx
	rdmsr
	shlq	$32, %rdx
	orq	%rdx, %rax
	ret

/*
 * Make EFER what RDI says, unless nothing was noted there. A kernel writes its EFER some time after it has gone back to
 * its own page tables, in which the no-execute bit is a reserved one unless EFER.NXE is set. Spoils RAX, RCX, RDX.
 */
give_efer_back:
	testq	%rdi, %rdi
	jz	.Lefer_given
	call	read_efer
	cmpq	%rdi, %rax
	je	.Lefer_given
	movl	%edi, %eax
	movq	%rdi, %rdx
	shrq	$32, %rdx
	wrmsr
.Lefer_given:
	ret

/*
 * Leave nothing of CET to a kernel that sets CR4.CET: Linux (6.1 and 6.12, read) clears both registers when it leaves by
 * kexec, and does not set them again. A peer's kernel clears them too, but not on the other CPUs when it panics, one of
 * which may be A's. Spoils RAX, RCX, RDX, RSI.
 */
cet_off:
	movq	%rbx, %rsi
	xorl	%eax, %eax
	cpuid
	cmpl	$CPUID_FEATURES, %eax
	jb	.Lcet_is_off
	movl	$CPUID_FEATURES, %eax
	xorl	%ecx, %ecx
	cpuid
	andl	$CPUID_ECX_SHSTK, %ecx
	andl	$CPUID_EDX_IBT, %edx
	orl	%ecx, %edx
	jz	.Lcet_is_off
	xorl	%eax, %eax
	xorl	%edx, %edx
	movl	$MSR_U_CET, %ecx
	wrmsr
	movl	$MSR_S_CET, %ecx
	wrmsr
.Lcet_is_off:
	movq	%rsi, %rbx
	ret

/* Keep A's descriptor state when the flags ask for it. Spoils RAX, RCX, RDX. */
keep_descriptors:
	testq	$GATE_FLAG_DESCRIPTORS, GATE_FLAGS(%rbx)
	jz	.Ldescriptors_kept
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
.Ldescriptors_kept:
	ret

/*
 * Selectors first (our GDT has the same flat segments at the same selectors), then the bases, which loading a
 * selector clears; the tables last. GDTR is given its cure after this, if A asked for it. Spoils RAX, RCX, RDX.
 */
give_descriptors_back:
	testq	$GATE_FLAG_DESCRIPTORS, GATE_FLAGS(%rbx)
	jz	.Ldescriptors_given
	.macro	give_selector register, at
	movzwl	\at(%rip), %eax
	cmpl	$gdt_end - gdt, %eax
	ja	.Lselector\@
	movl	%eax, \register
.Lselector\@:
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
.Ldescriptors_given:
	ret

/*
 * Give paging the levels that A had: they can be changed only with paging off, so by way of 32-bit code. The
 * gate lies below 4 GiB. Spoils RAX, RCX, RDX, RBP.
 */
levels_of_a:
	movq	%cr4, %rax
	xorq	GATE_A_CR4(%rbx), %rax
	btq	$CR4_LA57_BIT, %rax
	jc	.Lother_levels
	ret
.Lother_levels:
	popq	%rbp
	pushq	$FLAT32_CS
	leaq	paging_off(%rip), %rax
	pushq	%rax
	lretq

	.code32
paging_off:
	movl	%cr0, %eax
	andl	$~CR0_PG, %eax
	movl	%eax, %cr0
/* Flat 32-bit mode without paging, EBX = the gate: into 64-bit mode as A had it, to go on at EBP. Spoils EAX, ECX, EDX. */
long_mode:
	movl	$MSR_EFER, %ecx
	movl	GATE_A_EFER(%ebx), %eax
	movl	GATE_A_EFER + 4(%ebx), %edx
	andl	$~EFER_LMA, %eax
	orl	$EFER_LME, %eax
	wrmsr
	movl	GATE_A_CR4(%ebx), %eax
	movl	GATE_CR3_4LEVEL(%ebx), %ecx
	andl	$CR4_LA57, %eax
	jz	.Llong_mode_tables
	movl	GATE_CR3_5LEVEL(%ebx), %ecx
.Llong_mode_tables:
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	%ecx, %cr3
	movl	%cr0, %eax
	orl	$(CR0_PG | CR0_PE), %eax
	movl	%eax, %cr0
	pushl	$BOOT_CS
	leal	(.Lin_long_mode - _start)(%ebx), %eax
	pushl	%eax
	lretl
	.code64
.Lin_long_mode:
	movl	%ebx, %ebx /* the upper halves are undefined after the switch */
	movl	%esp, %esp
	movl	%ebp, %ebp
	jmp	*%rbp

/*
 * A panic on another CPU than A's: have that one started, and wait to be stopped by it. An INIT makes a boot CPU
 * begin where a reset does, in the firmware, which goes on at WARM_RESET when the CMOS says so; any other CPU
 * waits for a start-up message, which the boot CPU ignores. A machine that knows neither is reset in the end.
 */
hand_over:
	movq	GATE_LOW_PAGE(%rbx), %rdi
	testq	%rdi, %rdi
	jz	reset
	leaq	real_mode_start(%rip), %rsi
	movl	$real_mode_end - real_mode_start, %ecx
	pushq	%rdi
	rep movsb
	popq	%rdi
	leaq	flat_start(%rip), %rax
	movl	%eax, real_mode_target - real_mode_start(%rdi)
	leaq	gdt(%rip), %rax
	movl	%eax, real_mode_gdt + 2 - real_mode_start(%rdi)
	movl	%ebx, real_mode_gate - real_mode_start(%rdi)
	movl	%edi, %eax
	shll	$12, %eax /* segment in the upper half, offset 0 */
	movl	%eax, WARM_RESET
	movb	$CMOS_SHUTDOWN, %al
	outb	%al, $CMOS_INDEX
	movb	$SHUTDOWN_JUMP, %al
	outb	%al, $CMOS_DATA

	movq	%rdi, %rsi
	movl	$ICR_INIT, %eax
	movl	GATE_A_APIC(%rbx), %edx
	call	send_message
	movl	$20000, %ecx /* writing to port 0x80 takes about a microsecond */
.Lwait_after_init:
	outb	%al, $0x80
	loop	.Lwait_after_init
	movl	%esi, %eax
	shrl	$12, %eax
	orl	$ICR_STARTUP, %eax
	movl	GATE_A_APIC(%rbx), %edx
	call	send_message
	movl	$10000000, %ecx
.Lwait_for_other:
	outb	%al, $0x80
	loop	.Lwait_for_other
reset:
	movw	$RESET_PORT, %dx
	movb	$0x06, %al
	outb	%al, %dx
.Lwait_for_reset:
	hlt
	jmp	.Lwait_for_reset

	.code16
real_mode_start:
	cli
	movw	%cs, %ax
	movw	%ax, %ds
	movl	real_mode_gate - real_mode_start, %ebx
	lgdtl	real_mode_gdt - real_mode_start
	movl	$(CR0_PE | CR0_ET), %eax
	movl	%eax, %cr0
	.byte	0x66, 0xea /* ljmpl */
real_mode_target:
	.long	0
	.word	FLAT32_CS
real_mode_gate:
	.long	0
real_mode_gdt:
	.word	gdt_end - gdt - 1
	.long	0
real_mode_end:

	.code32
flat_start:
	movl	$BOOT_DS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	leal	GATE_SIZE(%ebx), %esp
	leal	(crash_on_cpu_of_a - _start)(%ebx), %ebp
	jmp	long_mode

	.code64
/*
 * Take away every PCI device's right to write to memory, which is about to be A's again, and stop the watchdog
 * that may have brought us here. A's drivers find their devices as after a plain kexec. Spoils RAX, RCX, RDX, RSI, RDI.
 */
silence_devices:
	xorl	%esi, %esi /* bus, device and function as in PCI_ADDRESS */
.Lnext_function:
	xorl	%ecx, %ecx
	call	pci_select
	inl	%dx, %eax
	movl	%eax, %edi
	cmpl	$-1, %eax
	je	.Labsent
	movl	$PCI_COMMAND, %ecx
	call	pci_select
	inl	%dx, %eax
	testl	$PCI_COMMAND_MASTER, %eax
	jz	.Lmaster_cleared
	andl	$(0xffff & ~PCI_COMMAND_MASTER), %eax /* ones written to the status half would clear bits */
	outl	%eax, %dx
.Lmaster_cleared:
	cmpl	$I6300ESB_ID, %edi
	jne	.Lwatchdog_stopped
	movl	$I6300ESB_LOCK, %ecx
	call	pci_select
	xorl	%eax, %eax
	outb	%al, %dx
.Lwatchdog_stopped:
	movl	$PCI_HEADER, %ecx
	call	pci_select
	inl	%dx, %eax
	testl	$PCI_MULTIFUNCTION, %eax
	jnz	.Lto_next_function
.Labsent:
	testl	$0x700, %esi
	jnz	.Lto_next_function
	addl	$0x700, %esi /* function 0 is absent or alone: no need to ask for the others */
.Lto_next_function:
	addl	$0x100, %esi
	cmpl	$0x1000000, %esi
	jb	.Lnext_function
	ret

/* Select register ECX of the function in ESI; DX = the port of its data. Spoils RAX. */
pci_select:
	movl	%esi, %eax
	orl	%ecx, %eax
	orl	$0x80000000, %eax
	movw	$PCI_ADDRESS, %dx
	outl	%eax, %dx
	movw	$PCI_DATA, %dx
	ret

/* RAX = this CPU's local APIC id: 32 bits of it where the CPU has leaf 11. Spoils RCX, RDX, RSI. */
apic_id:
	movq	%rbx, %rsi
	xorl	%eax, %eax
	cpuid
	cmpl	$11, %eax
	jb	.Lapic_id_8_bits
	movl	$11, %eax
	xorl	%ecx, %ecx
	cpuid
	testl	%ebx, %ebx
	jz	.Lapic_id_8_bits
	movl	%edx, %eax
	jmp	.Lapic_id_found
.Lapic_id_8_bits:
	movl	$1, %eax
	cpuid
	movl	%ebx, %eax
	shrl	$24, %eax
.Lapic_id_found:
	movq	%rsi, %rbx
	ret

/*
 * INIT to every CPU but this one. A CPU parked in MWAIT wakes when the line it watches is written, and then
 * runs whatever now lies where its code was; one that waits for SIPI does not. The kernel that
 * is entered next starts its other CPUs by INIT and SIPI in any case. Spoils RAX, RCX, RDX.
 */
init_other_cpus:
	movl	$ICR_INIT_OTHERS, %eax
	xorl	%edx, %edx
/* Send what EAX says (the low half of ICR) to the local APIC with id EDX. Spoils RAX, RCX, RDX. */
send_message:
	pushq	%rax
	pushq	%rdx
	movl	$MSR_APIC_BASE, %ecx
	rdmsr
	btl	$11, %eax /* the local APIC is off: no way to send, and nobody to send to */
	jnc	.Lmessage_sent
	btl	$10, %eax
	jc	.Lmessage_x2apic
	shlq	$32, %rdx
	orq	%rdx, %rax
	andq	$~0xfff, %rax
	movl	(%rsp), %edx
	shll	$24, %edx
	movl	%edx, APIC_ICR_HIGH(%rax)
	movl	8(%rsp), %edx
	movl	%edx, APIC_ICR_LOW(%rax)
	movl	$1000000, %ecx
.Lmessage_busy:
	testl	$ICR_BUSY, APIC_ICR_LOW(%rax)
	jz	.Lmessage_sent
	pause
	decl	%ecx
	jnz	.Lmessage_busy
	jmp	.Lmessage_sent
.Lmessage_x2apic:
	movl	$MSR_X2APIC_ICR, %ecx
	movl	8(%rsp), %eax
	movl	(%rsp), %edx
	wrmsr
.Lmessage_sent:
	addq	$16, %rsp
	ret

/* Put the pages of the list at R13 where they belong. Spoils RCX, RSI, RDI, R13. */
copy_pages:
	movq	PAGE_LIST_PAGES(%r13), %rcx
	shlq	$9, %rcx
	jz	.Lpages_copied
	movq	PAGE_LIST_FROM(%r13), %rsi
	movq	PAGE_LIST_TO(%r13), %rdi
	rep movsq
	addq	$PAGE_LIST_ENTRY, %r13
	jmp	copy_pages
.Lpages_copied:
	ret

/* RDI = the mailbox and ZF set when it is there and begins with the cookie; else ZF clear. Spoils RAX. */
find_mailbox:
	movq	GATE_MAILBOX(%rbx), %rdi
	testq	%rdi, %rdi
	jz	.Lno_mailbox
	movq	GATE_COOKIE(%rbx), %rax
	cmpq	MAILBOX_COOKIE(%rdi), %rax
	jne	.Lmailbox_compared
	movq	GATE_COOKIE + 8(%rbx), %rax
	cmpq	MAILBOX_COOKIE + 8(%rdi), %rax
	ret
.Lno_mailbox:
	orl	$1, %eax
.Lmailbox_compared:
	ret

/* RAX = the time stamp counter. Spoils RDX. */
note_time:
	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	ret

	.org GATE_SIZE

	.section .note.GNU-stack, "", @progbits

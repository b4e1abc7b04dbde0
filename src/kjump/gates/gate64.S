/*
 * The x86_64 gate: the program at both ends of every jump. layouts.py defines its interface (gate.h).
 *
 * entry     A's kernel calls this with the return address on a stack of one page (the kernel's swap page).
 *           The gate records A's re-entry address and stack, sends INIT to A's other CPUs, loads its own page
 *           tables and starts the peer. RSP, [RSP] and the control registers are A's; all others may be changed.
 * way_back  The kernel of B (or C) jumps here by an ordinary kexec. That kernel's identity map covers only its own
 *           RAM; the gate loads its own tables, which map all of RAM, before it accesses A's control page.
 *           It then enters A as A's kernel expects a callee to return: the return address popped, the gate's
 *           entry pushed in its place. (A plain `ret` would leave RSP at the end of the page on kernels before
 *           6.14, which would then read the next entry from the page behind it.)
 *           With GATE_RESTORE a boot kernel jumps here: the gate first copies the pages of A that this kernel has
 *           read to where they belong.
 * crash     B's kernel jumps here when it panics, through a door in its crash slot. Devices and other CPUs have not
 *           been stopped then, and the CPU may be any of B's. The gate stops the devices' DMA, and continues A on the
 *           CPU on which A left.
 * switch    B's kernel calls this, through the door, as A's kernel calls entry: with the return address on a
 *           stack of one page. The gate records B's re-entry address and stack, and enters A; entry then re-enters B.
 *
 * A kernel restores most of its CPU state itself; docs/protocol.md has the list. The gate sets what the kernel relies
 * on before that: the levels of paging, EFER, CR0.WP, GDTR, and CET switched off.
 *
 * With several peers one loaded image contains a gate for each. A always enters the first gate, which jumps to the
 * one that the mailbox names.
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
	.quad	0 /* the table's address, filled in by own_tables */
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
	/* A's descriptor state, which GATE_FLAG_DESCRIPTORS saves. */
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
	jmp	*%rax /* GATE_ENTRY of the wanted gate; registers and stack are as A left them */
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
	/* The state at entry of the Linux 64-bit boot protocol (boot.rst): selectors 0x10/0x18, RSI, IF clear. */
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
 * A has jumped again although the peer cannot be re-entered (it left by way_back or crash). Writes GONE to the
 * mailbox and returns to A. A's tables and stack are still in use: no CPU state has been changed.
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

/* Entered from the door, which has loaded the gate's tables: R8, R9 = B's GDT, R10 = the door; RSP, [RSP] are B's. */
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
 * Enter a kernel at RDX as a callee returns to it: RSI = the stack it called with, RDI = its next entry.
 *
 * Kernels before 6.13 load SS while GDTR is invalid, which is a #GP without a handler. GDTR is therefore loaded with
 * the kernel's own table (RAX = linear address, RCX = limit); the address is valid under the kernel's page tables,
 * which are in use when SS is loaded. Kernels that load their own GDT first are not affected, so it is always done.
 *
 * CR0.WP is set because the kernel restores CR4 before CR0, and leaves with WP clear (6.1 and 6.12, read): CR4.CET
 * cannot be set while WP is clear. All pages that are written before CR0 is restored, such as the swapped pages, are
 * mapped writable by the kernel's identity tables and by the gate's.
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

/* Load the gate's page tables (with the levels in use), GDT, an empty IDT, flat data segments. Spoils RAX, RCX. */
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
	popq	%rax /* before CR3 is loaded: the new tables need not map the stack */
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
 * Set EFER to RDI unless that is 0 (not recorded). A kernel restores EFER after it has loaded its own page tables, in
 * which the no-execute bit is reserved, and faults, unless EFER.NXE is set. Spoils RAX, RCX, RDX.
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
 * Clear the CET registers for a kernel that sets CR4.CET: Linux (6.1 and 6.12, read) clears both when it leaves by
 * kexec, and expects them clear. A peer's kernel clears them too, but after a panic not on its other CPUs, one of
 * which may be the CPU that A continues on. Spoils RAX, RCX, RDX, RSI.
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

/* Save A's descriptor state if GATE_FLAG_DESCRIPTORS is set. Spoils RAX, RCX, RDX. */
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
 * Restore the selectors first (the gate's GDT has the same flat segments at the same selectors), then the bases, which
 * loading a selector clears, and the tables last. return_to_kernel may replace GDTR after that. Spoils RAX, RCX, RDX.
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
 * Set the levels of paging that A used. They can be changed only with paging off, which takes 32-bit code; the gate
 * lies below 4 GiB. Spoils RAX, RCX, RDX, RBP.
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
/* From flat 32-bit mode, paging off, EBX = the gate, to 64-bit mode with A's levels, at EBP. Spoils EAX, ECX, EDX. */
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
 * A panic on another CPU than the one on which A left: start that CPU, which then stops this one by INIT. If it is the
 * boot CPU, INIT makes it run the firmware from the reset vector, which jumps to the far pointer in WARM_RESET when the
 * CMOS shutdown byte says so. Any other CPU waits for a start-up IPI, which the boot CPU ignores. If neither works the
 * machine is reset.
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
	movl	$20000, %ecx /* a delay: a write to port 0x80 takes about a microsecond */
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
 * Clear bus mastering of every PCI device, so that none writes to memory that will be A's again, and stop the watchdog,
 * whose NMI may have caused the panic. A's drivers find their devices as after an ordinary kexec. Spoils RAX, RCX, RDX,
 * RSI, RDI.
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
	andl	$(0xffff & ~PCI_COMMAND_MASTER), %eax /* zeros in the upper half: ones would clear bits of the status register */
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
	addl	$0x700, %esi /* function 0 is absent or the only one: skip functions 1 to 7 */
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

/* RAX = this CPU's local APIC id: 32 bits if the CPU has CPUID leaf 11, else 8. Spoils RCX, RDX, RSI. */
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
 * Send INIT to every CPU but this one. A CPU parked in MWAIT wakes when the cache line that it monitors is written, and
 * would execute the new contents of its code's memory; a CPU that waits for SIPI does not wake. The kernel that is
 * entered next starts its other CPUs by INIT and SIPI in any case. Spoils RAX, RCX, RDX.
 */
init_other_cpus:
	movl	$ICR_INIT_OTHERS, %eax
	xorl	%edx, %edx
/* Send the interrupt in EAX (the low half of ICR) to the local APIC with id EDX. Spoils RAX, RCX, RDX. */
send_message:
	pushq	%rax
	pushq	%rdx
	movl	$MSR_APIC_BASE, %ecx
	rdmsr
	btl	$11, %eax /* the enable bit: with the local APIC off nothing can be sent */
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

/* Copy the pages of the page list at R13 to their destinations. Spoils RCX, RSI, RDI, R13. */
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

/* RDI = the mailbox, and ZF set if there is one that begins with the cookie; else ZF clear. Spoils RAX. */
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

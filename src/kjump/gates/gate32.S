/*
 * The i386 gate: the counterpart of gate64.S, with the same fields (layouts.py), of which it uses the low halves.
 *
 * entry     A's kernel calls this in flat 32-bit protected mode, paging off, CR4 = 0. There are two kinds of kernel:
 *           those with jump-back protocol 1.00 (EDI = the real jump-back entry, [ESP] = the helper's entry), and
 *           mainline since 2008 ([ESP] = the return address). The gate returns to both in the same way: the return
 *           address popped, the gate's next entry pushed in its place, EBX, ESI, EDI and EBP unchanged. The helper
 *           of 1.00 pops that entry and passes it on in EDI; mainline reads it from the stack.
 * way_back  The peer jumps here to enter A, from any flat 32-bit mode.
 *
 * Mainline turns paging on before it restores CR4, so the gate sets CR4.PAE if A uses PAE tables (GATE_FLAG_PAE). It
 * loads SS before its own GDT, so the gate loads GDTR with A's (GATE_A_GDT_BASE, a linear address). It does not restore
 * EFER, so the gate does: A's PAE tables may need NXE, and with LME set paging would start in long mode.
 */
#include "gate.h"

#define BOOT_CS           0x10
#define BOOT_DS           0x18
#define CR4_PAE           (1 << 5)
#define CR0_WP            (1 << 16)
#define MSR_EFER          0xc0000080
#define CPUID_EXTENDED    0x80000000
#define CPUID_EDX_EFER    ((1 << 11) | (1 << 20) | (1 << 29)) /* of leaf 0x80000001: SYSCALL, NX, LM, which EFER enables */

	.code32
	.section .text, "ax"
	.globl _start
_start:
	.org GATE_ENTRY
	jmp	entry
	.org GATE_WAY_BACK
	jmp	way_back

	.org GATE_MAGIC
	.ascii	"KJGATE1\0"
	.org GATE_FIELDS_END

	.balign 16
gdt:
	.quad	0
	.quad	0
	.quad	0x00cf9a000000ffff /* 0x10: flat code */
	.quad	0x00cf92000000ffff /* 0x18: flat data */
	.fill	8, 8, 0
	.quad	0x00cf9a000000ffff /* 0x60: flat code, where i386 Linux has it */
	.quad	0x00cf92000000ffff /* 0x68: flat data */
gdt_end:
	.balign 8
	.word	0
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	0
	.word	0
a_gdt_pointer:
	.word	0
	.long	0
	.word	0
no_idt:
	.word	0
	.long	0
	/* A's registers, which its kernel expects unchanged. */
	.balign 8
kept_registers:
	.long	0, 0, 0, 0 /* EBX, ESI, EDI, EBP */
kept_selectors:
	.word	0, 0, 0, 0 /* DS, ES, FS, GS */
	.word	0
kept_gdt:
	.word	0
	.long	0
	.word	0
kept_idt:
	.word	0
	.long	0

#define AT(label) (label - _start)(%ebx)

	.balign 16
entry:
	cli
	cld
	pushl	%ebx
	call	.Lentry_here
.Lentry_here:
	popl	%ebx
	subl	$.Lentry_here - _start, %ebx
	popl	AT(kept_registers)
	movl	%esi, (kept_registers - _start + 4)(%ebx)
	movl	%edi, (kept_registers - _start + 8)(%ebx)
	movl	%ebp, (kept_registers - _start + 12)(%ebx)
	testl	$GATE_FLAG_RESIDENT, GATE_FLAGS(%ebx)
	jnz	.Lstart_peer
	cmpl	$GATE_STATE_FRESH, GATE_STATE(%ebx)
	jne	nobody_there
.Lstart_peer:
	movl	$GATE_STATE_ENTERED, GATE_STATE(%ebx)
	rdtsc
	movl	%eax, GATE_TSC_IN(%ebx)
	movl	%edx, GATE_TSC_IN + 4(%ebx)
	movl	%cr0, %eax
	movl	%eax, GATE_A_CR0(%ebx)
	movl	%cr4, %eax
	movl	%eax, GATE_A_CR4(%ebx)
	call	note_return
	call	has_efer
	jz	.Lefer_noted
	rdmsr
	movl	%eax, GATE_A_EFER(%ebx)
	movl	%edx, GATE_A_EFER + 4(%ebx)
.Lefer_noted:
	call	keep_descriptors
	call	own_tables
	leal	GATE_SIZE(%ebx), %esp
	movl	GATE_PEER_ENTRY(%ebx), %eax
	movl	GATE_PEER_ARGUMENT(%ebx), %esi
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	xorl	%ebx, %ebx
	jmp	*%eax

/* A has jumped again although the peer cannot be re-entered: writes GONE to the mailbox and returns to A. */
nobody_there:
	call	find_mailbox
	jnz	.Lnobody_told
	movl	$MAILBOX_OUTCOME_GONE, MAILBOX_OUTCOME(%edi)
.Lnobody_told:
	call	note_return
	jmp	return_to_a

/* Record A's re-entry address and stack; called with A's stack as it was at the entry. */
note_return:
	leal	4(%esp), %eax
	movl	%eax, GATE_A_STACK(%ebx)
	movl	(%eax), %eax
	movl	%eax, GATE_A_ENTRY(%ebx)
	ret

way_back:
	cli
	cld
	call	.Lway_back_here
.Lway_back_here:
	popl	%ebx
	subl	$.Lway_back_here - _start, %ebx
	leal	GATE_SIZE(%ebx), %esp
	call	own_tables
	rdtsc
	movl	%eax, GATE_TSC_OUT(%ebx)
	movl	%edx, GATE_TSC_OUT + 4(%ebx)

return_to_a:
	call	give_descriptors_back
	call	has_efer
	jz	.Lefer_given
	movl	GATE_A_EFER(%ebx), %eax
	movl	GATE_A_EFER + 4(%ebx), %edx
	wrmsr
.Lefer_given:
	/* Set CR0.WP as gate64.S does: CR4.CET cannot be set while WP is clear. No effect yet, since paging is off. */
	movl	%cr0, %eax
	orl	$CR0_WP, %eax
	movl	%eax, %cr0
	testl	$GATE_FLAG_PAE, GATE_FLAGS(%ebx)
	jz	.Lpae_given
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
.Lpae_given:
	movl	GATE_A_GDT_BASE(%ebx), %eax
	testl	%eax, %eax
	jz	.Lgdt_given
	movl	%eax, (a_gdt_pointer - _start + 2)(%ebx)
	movl	GATE_A_GDT_LIMIT(%ebx), %eax
	movw	%ax, AT(a_gdt_pointer)
	lgdt	AT(a_gdt_pointer)
.Lgdt_given:
	movl	GATE_A_STACK(%ebx), %esp
	addl	$4, %esp
	pushl	GATE_NEXT_ENTRY(%ebx)
	movl	(kept_registers - _start + 4)(%ebx), %esi
	movl	(kept_registers - _start + 8)(%ebx), %edi
	movl	(kept_registers - _start + 12)(%ebx), %ebp
	movl	GATE_A_ENTRY(%ebx), %eax
	movl	AT(kept_registers), %ebx
	jmp	*%eax

/* ZF clear when the CPU has EFER; ECX = its number. Spoils EAX, EDX. */
has_efer:
	pushl	%ebx
	movl	$CPUID_EXTENDED, %eax
	cpuid
	xorl	%edx, %edx
	cmpl	$(CPUID_EXTENDED + 1), %eax
	jb	.Lefer_known
	movl	$(CPUID_EXTENDED + 1), %eax
	cpuid
.Lefer_known:
	popl	%ebx
	movl	$MSR_EFER, %ecx
	testl	$CPUID_EDX_EFER, %edx
	ret

/* Load the gate's GDT, an empty IDT, flat segments. Spoils EAX. */
own_tables:
	leal	AT(gdt), %eax
	movl	%eax, (gdt_pointer - _start + 2)(%ebx)
	lgdt	AT(gdt_pointer)
	lidt	AT(no_idt)
	movl	$BOOT_DS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	popl	%eax
	pushl	$BOOT_CS
	pushl	%eax
	lret

keep_descriptors:
	testl	$GATE_FLAG_DESCRIPTORS, GATE_FLAGS(%ebx)
	jz	.Ldescriptors_kept
	sgdt	AT(kept_gdt)
	sidt	AT(kept_idt)
	movw	%ds, AT(kept_selectors)
	movw	%es, (kept_selectors - _start + 2)(%ebx)
	movw	%fs, (kept_selectors - _start + 4)(%ebx)
	movw	%gs, (kept_selectors - _start + 6)(%ebx)
.Ldescriptors_kept:
	ret

/* Restore A's selectors with the gate's GDT, which has A's flat segments at A's selectors, then A's tables. */
give_descriptors_back:
	testl	$GATE_FLAG_DESCRIPTORS, GATE_FLAGS(%ebx)
	jz	.Ldescriptors_given
	.macro	give_selector register, at
	movzwl	\at(%ebx), %eax
	cmpl	$gdt_end - gdt, %eax
	ja	.Lselector\@
	movl	%eax, \register
.Lselector\@:
	.endm
	give_selector %es, kept_selectors-_start+2
	give_selector %fs, kept_selectors-_start+4
	give_selector %gs, kept_selectors-_start+6
	give_selector %ds, kept_selectors-_start
	lidt	AT(kept_idt)
	lgdt	AT(kept_gdt)
.Ldescriptors_given:
	ret

/* EDI = the mailbox, and ZF set if there is one that begins with the cookie; else ZF clear. Spoils EAX, ECX, ESI. */
find_mailbox:
	movl	GATE_MAILBOX(%ebx), %edi
	testl	%edi, %edi
	jz	.Lno_mailbox
	pushl	%edi
	leal	GATE_COOKIE(%ebx), %esi
	movl	$4, %ecx
	repe	cmpsl
	popl	%edi
	ret
.Lno_mailbox:
	orl	$1, %eax
	ret

	.org GATE_SIZE

	.section .note.GNU-stack, "", @progbits

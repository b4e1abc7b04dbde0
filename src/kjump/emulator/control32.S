/*
 * The emulated kernel's control code for i386, jump-back protocol 1.00, written from the protocol's text.
 *
 * At 0 is the real jump-back entry: the callee jumps here, paging off, with EDI = its own entry for the next jump. The
 * kernel calls CONTROL_RELOCATE, which returns that entry to the kernel in EAX.
 *
 * The callee gets EDI = the real entry and [ESP] = the helper entry, on a stack of one page (the swap page), flat
 * segments, paging off, interrupts off. It may jump to EDI (with its own EDI and stack), or return as a C function
 * does, with EBX, ESI, EDI and EBP unchanged. The latter leads to the helper, which passes the word above on the stack
 * to the real entry as the callee's next entry; that word is at first the entry at which the callee was called.
 */
#include "control.h"

#define CR0_PG            (1 << 31)
#define CR0_CLEARED       ((1 << 18) | (1 << 16) | (1 << 3) | (1 << 2)) /* AM, WP, TS, EM */
#define FIELD(offset)     (offset)(%ebx)

	.code32
	.section .text.start, "ax"
	.globl _start
_start:
	jmp	jump_back

	.org CONTROL_RELOCATE
relocate:
	pushl	%ebx
	pushl	%esi
	pushl	%edi
	pushl	%ebp
	pushfl
	cli
	cld
	call	own_base
	movl	%esp, FIELD(CONTROL_SP)
	movl	%cr0, %eax
	movl	%eax, FIELD(CONTROL_CR0)
	movl	%cr3, %eax
	movl	%eax, FIELD(CONTROL_CR3)
	movl	%cr4, %eax
	movl	%eax, FIELD(CONTROL_CR4)
	sgdt	FIELD(CONTROL_GDT + 6)
	sidt	FIELD(CONTROL_IDT + 6)
	lgdt	FIELD(nothing - _start)
	lidt	FIELD(nothing - _start)

	movl	FIELD(CONTROL_TABLES), %eax
	movl	%eax, %cr3
	movl	FIELD(CONTROL_PHYSICAL), %eax
	leal	CONTROL_STACK(%eax), %esp
	addl	$(at_physical - _start), %eax
	jmp	*%eax
at_physical:
	movl	FIELD(CONTROL_PHYSICAL), %ebx
	movl	%cr0, %eax
	andl	$~(CR0_PG | CR0_CLEARED), %eax
	movl	%eax, %cr0
	xorl	%eax, %eax
	movl	%eax, %cr4
	movl	%eax, %cr3

	call	exchange
	movl	FIELD(CONTROL_START), %edx
	testl	$CONTROL_FLAG_PRESERVE, FIELD(CONTROL_FLAGS)
	jz	never_to_return
	movl	FIELD(CONTROL_SWAP_PAGE), %esp
	addl	$CONTROL_PAGE_SIZE, %esp
	movl	%ebx, %edi
	pushl	%edx
calling:
	call	*%edx
	/* The helper entry. EDI is the control code's real entry again; on the stack is the callee's next entry. */
	movl	%edi, %edx
	popl	%edi
	pushl	%edx
	jmp	calling

jump_back:
	call	own_base
	movl	%edi, FIELD(CONTROL_START)
	leal	CONTROL_STACK(%ebx), %esp
	call	exchange
	movl	FIELD(CONTROL_TABLES), %eax
	movl	%eax, %cr3
	movl	%cr0, %eax
	orl	$CR0_PG, %eax
	movl	%eax, %cr0
	movl	FIELD(CONTROL_VIRTUAL), %ebx
	leal	FIELD(at_virtual - _start), %eax
	jmp	*%eax
at_virtual:
	movl	FIELD(CONTROL_CR4), %eax
	movl	%eax, %cr4
	movl	FIELD(CONTROL_CR3), %eax
	movl	%eax, %cr3
	movl	FIELD(CONTROL_CR0), %eax
	movl	%eax, %cr0
	movl	FIELD(CONTROL_SP), %esp
	lgdt	FIELD(CONTROL_GDT + 6)
	lidt	FIELD(CONTROL_IDT + 6)
	movl	FIELD(CONTROL_START), %eax
	popfl
	popl	%ebp
	popl	%edi
	popl	%esi
	popl	%ebx
	ret

never_to_return:
	leal	CONTROL_STACK(%ebx), %esp
	pushl	%edx
	xorl	%eax, %eax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%esi, %esi
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	ret

/* EBX = the address of _start, at which this code runs. */
own_base:
	call	.Lhere
.Lhere:
	popl	%ebx
	subl	$.Lhere - _start, %ebx
	ret

/* As in control64.S. EBX = the control page, EDX = address of the next entry, EBP = destination, EAX = entry. */
exchange:
	leal	FIELD(CONTROL_HEAD), %edx
next_entry:
	movl	(%edx), %eax
	addl	$4, %edx
	movl	%eax, %ecx
	andl	$~(CONTROL_PAGE_SIZE - 1), %eax
	testb	$IND_DONE, %cl
	jnz	exchange_done
	testb	$IND_INDIRECTION, %cl
	jz	.Lno_indirection
	movl	%eax, %edx
	jmp	next_entry
.Lno_indirection:
	testb	$IND_DESTINATION, %cl
	jz	.Lno_destination
	movl	%eax, %ebp
	jmp	next_entry
.Lno_destination:
	testb	$IND_SOURCE, %cl
	jz	exchange_done
	testl	$CONTROL_FLAG_PRESERVE, FIELD(CONTROL_FLAGS)
	jz	.Ltake_source
	movl	%ebp, %esi
	movl	FIELD(CONTROL_SWAP_PAGE), %edi
	call	copy_page
.Ltake_source:
	movl	%eax, %esi
	movl	%ebp, %edi
	call	copy_page
	testl	$CONTROL_FLAG_PRESERVE, FIELD(CONTROL_FLAGS)
	jz	.Lpair_done
	movl	FIELD(CONTROL_SWAP_PAGE), %esi
	movl	%eax, %edi
	call	copy_page
.Lpair_done:
	addl	$CONTROL_PAGE_SIZE, %ebp
	jmp	next_entry
exchange_done:
	ret

copy_page:
	movl	$(CONTROL_PAGE_SIZE / 4), %ecx
	rep	movsl
	ret

	.balign 8
	.word	0
nothing:
	.word	0
	.long	0

	.org CONTROL_VIRTUAL
	.section .note.GNU-stack, "", @progbits

/*
 * The emulated kernel's control code for x86_64, written from the described behaviour of Linux, not from its source.
 *
 * relocate   The kernel calls it at its linear address. It saves the kernel's state, switches to identity page tables,
 *            swaps every destination page with its source page, and calls the callee on a stack of one page, the swap
 *            page. It returns to the kernel, in RAX, the entry for the next jump.
 *
 * On the way back CR4 is set before CR0, as in Linux. With CET in CR4 that is a fault unless CR0.WP is set already.
 *
 * State at the callee: long mode, identity tables, interrupts off, GDT and IDT with limit 0, CR4 = PAE (and LA57 if
 * the kernel has it). The callee may change every register; it must return with the return address popped, and the
 * entry for the next jump on top of the stack.
 */
#include "control.h"

#define CR0_CLEARED       ((1 << 18) | (1 << 16) | (1 << 3) | (1 << 2)) /* AM, WP, TS, EM */
#define CR4_CET_BIT       23
#define CR4_PAE           (1 << 5)
#define CR4_LA57          (1 << 12)

	.code64
	.section .text.start, "ax"
	.globl _start
_start:
	.org CONTROL_RELOCATE
relocate:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	pushfq
	cli
	cld
	leaq	_start(%rip), %rbx
	movq	%rsp, CONTROL_SP(%rbx)
	movq	%cr0, %rax
	movq	%rax, CONTROL_CR0(%rbx)
	movq	%cr3, %rax
	movq	%rax, CONTROL_CR3(%rbx)
	movq	%cr4, %rax
	movq	%rax, CONTROL_CR4(%rbx)
	sgdt	CONTROL_GDT + 6(%rbx)
	sidt	CONTROL_IDT + 6(%rbx)
	lgdt	nothing(%rip)
	lidt	nothing(%rip)

	/* Jump to the same page at its physical address, with tables that map it at both addresses. */
	movq	CONTROL_TABLES(%rbx), %rax
	movq	%rax, %cr3
	movq	CONTROL_PHYSICAL(%rbx), %rax
	leaq	CONTROL_STACK(%rax), %rsp
	addq	$(at_physical - _start), %rax
	jmp	*%rax
at_physical:
	leaq	_start(%rip), %rbx
	movq	%cr4, %rax
	btrq	$CR4_CET_BIT, %rax /* first: while it is set, WP cannot be cleared */
	movq	%rax, %cr4
	movq	%cr0, %rax
	andq	$~CR0_CLEARED, %rax
	movq	%rax, %cr0
	movq	%cr4, %rax
	andq	$(CR4_PAE | CR4_LA57), %rax
	movq	%rax, %cr4
	movq	%cr3, %rax
	movq	%rax, %cr3

	call	exchange
	movq	CONTROL_START(%rbx), %rdx
	testq	$CONTROL_FLAG_PRESERVE, CONTROL_FLAGS(%rbx)
	jz	never_to_return
	movq	CONTROL_SWAP_PAGE(%rbx), %rsp
	addq	$CONTROL_PAGE_SIZE, %rsp
	testq	$CONTROL_FLAG_PUSH_START, CONTROL_FLAGS(%rbx)
	jz	.Lcall_target
	pushq	%rdx
.Lcall_target:
	call	*%rdx

	/* Only RIP and the top of the stack are known here. */
	movq	(%rsp), %rax
	leaq	_start(%rip), %rbx
	movq	%rax, CONTROL_START(%rbx)
	movq	CONTROL_TABLES(%rbx), %rax
	movq	%rax, %cr3
	leaq	CONTROL_STACK(%rbx), %rsp
	call	exchange

	movq	CONTROL_VIRTUAL(%rbx), %rbx
	leaq	at_virtual - _start(%rbx), %rax
	jmp	*%rax
at_virtual:
	movq	CONTROL_CR3(%rbx), %rax
	movq	%rax, %cr3
	movq	CONTROL_SP(%rbx), %rsp
	movq	CONTROL_CR4(%rbx), %rax
	movq	%rax, %cr4
	movq	CONTROL_CR0(%rbx), %rax
	movq	%rax, %cr0
	testq	$CONTROL_FLAG_SS_FIRST, CONTROL_FLAGS(%rbx)
	jz	.Lsegments_valid
	movl	$KERNEL_DS, %eax
	movl	%eax, %ss
.Lsegments_valid:
	lgdt	CONTROL_GDT + 6(%rbx)
	lidt	CONTROL_IDT + 6(%rbx)
	movq	CONTROL_START(%rbx), %rax
	popfq
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

never_to_return:
	leaq	CONTROL_STACK(%rbx), %rsp
	pushq	%rdx
	xorl	%eax, %eax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%esi, %esi
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	ret

/*
 * Process the indirection list. With PRESERVE every pair of pages is swapped through the swap page, else the source is
 * copied. RBX = the control page, R8 = entry, R9 = address of the next entry, R10 = destination.
 */
exchange:
	leaq	CONTROL_HEAD(%rbx), %r9
next_entry:
	movq	(%r9), %r8
	addq	$8, %r9
	movq	%r8, %rax
	andq	$~(CONTROL_PAGE_SIZE - 1), %rax
	testb	$IND_DONE, %r8b
	jnz	exchange_done
	testb	$IND_INDIRECTION, %r8b
	jz	.Lno_indirection
	movq	%rax, %r9
	jmp	next_entry
.Lno_indirection:
	testb	$IND_DESTINATION, %r8b
	jz	.Lno_destination
	movq	%rax, %r10
	jmp	next_entry
.Lno_destination:
	testb	$IND_SOURCE, %r8b
	jz	exchange_done
	movq	%rax, %r11
	testq	$CONTROL_FLAG_PRESERVE, CONTROL_FLAGS(%rbx)
	jz	.Ltake_source
	movq	%r10, %rsi
	movq	CONTROL_SWAP_PAGE(%rbx), %rdi
	call	copy_page
.Ltake_source:
	movq	%r11, %rsi
	movq	%r10, %rdi
	call	copy_page
	testq	$CONTROL_FLAG_PRESERVE, CONTROL_FLAGS(%rbx)
	jz	.Lpair_done
	movq	CONTROL_SWAP_PAGE(%rbx), %rsi
	movq	%r11, %rdi
	call	copy_page
.Lpair_done:
	addq	$CONTROL_PAGE_SIZE, %r10
	jmp	next_entry
exchange_done:
	ret

copy_page:
	movl	$(CONTROL_PAGE_SIZE / 8), %ecx
	rep	movsq
	ret

	.balign 8
	.word	0, 0, 0
nothing:
	.word	0
	.quad	0

	.org CONTROL_VIRTUAL
	.section .note.GNU-stack, "", @progbits

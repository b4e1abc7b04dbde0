/*
 * The x86_64 shim: the peer that the gate starts to call a function. layouts.py defines its interface (call.h).
 *
 * The gate enters it with RSI = the call block, the gate's tables and GDT loaded, interrupts off. It calls the
 * function by the System V ABI: RDI = arguments, RSI = their number, RDX = the block (kjump's run-time uses it for the
 * output). It leaves by the gate's way_back.
 *
 * While the function runs, the shim's IDT catches exceptions, which end the function and are reported.
 */
#include "call.h"
#include "gate.h"

#define CODE_SELECTOR     0x10 /* in the gate's GDT */
#define CR0_MP            (1 << 1)
#define CR0_EM            (1 << 2)
#define CR0_TS            (1 << 3)
#define CR4_OSFXSR        (1 << 9)
#define CR4_OSXMMEXCPT    (1 << 10)
#define HAS_ERROR_CODE    0x60227d00 /* bit n: exception n pushes one (8, 10-14, 17, 21, 29, 30) */

	.code64
	.section .text.start, "ax"
	.globl _start
_start:
	movq	BLOCK_STACK(%rsi), %rsp
	movq	%rsi, %rbx
	movq	%rsi, %rdi
	call	call_function
	movq	BLOCK_GATE(%rbx), %rax
	addq	$GATE_WAY_BACK, %rax
	jmp	*%rax

	.text
/* int run_function(uint8_t *block, uint64_t *value, size_t count) */
	.globl	run_function
	.hidden	run_function
run_function:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	pushq	%rsi
	movq	%rdi, %rbx
	movq	%rdx, %rsi
	movq	%rsp, BLOCK_KEPT_SP(%rbx)
	movq	%cr0, %rax
	movq	%rax, BLOCK_KEPT_CR0(%rbx)
	movq	%cr4, %rax
	movq	%rax, BLOCK_KEPT_CR4(%rbx)
	call	catch_exceptions
	testq	$BLOCK_FLAG_FPU, BLOCK_FLAGS(%rbx)
	jz	.Lcall
	call	open_fpu
.Lcall:
	leaq	BLOCK_ARGS(%rbx), %rdi
	movq	%rbx, %rdx
	leaq	block(%rip), %rax
	movq	%rbx, (%rax)
	call	*BLOCK_ENTRY(%rbx)
	movq	block(%rip), %rbx
	movq	BLOCK_KEPT_SP(%rbx), %rsp
	movq	(%rsp), %rsi
	movq	%rax, (%rsi)
	movl	$1, %edx
	jmp	leave_function

/* RBX = block, RDX = the value to return. Restores the shim's stack pointer, which the function may have changed. */
leave_function:
	cli
	cld
	movq	BLOCK_KEPT_SP(%rbx), %rsp
	testq	$BLOCK_FLAG_FPU, BLOCK_FLAGS(%rbx)
	jz	.Lfpu_back
	clts
	fxrstorq BLOCK_FPU(%rbx)
.Lfpu_back:
	/* CR4 first: a function may have set CR4.CET, and CR0.WP cannot be cleared while CET is set. */
	movq	BLOCK_KEPT_CR4(%rbx), %rax
	movq	%rax, %cr4
	movq	BLOCK_KEPT_CR0(%rbx), %rax
	movq	%rax, %cr0
	movl	%edx, %eax
	popq	%rsi
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

/* Save A's FPU and SSE registers and initialize them for the function. RBX = block. Spoils RAX. */
open_fpu:
	movq	%cr0, %rax
	andq	$~(CR0_EM | CR0_TS), %rax
	orq	$CR0_MP, %rax
	movq	%rax, %cr0
	movq	%cr4, %rax
	orq	$(CR4_OSFXSR | CR4_OSXMMEXCPT), %rax
	movq	%rax, %cr4
	fxsaveq	BLOCK_FPU(%rbx)
	fninit
	ldmxcsr	fresh_mxcsr(%rip)
	ret

/* Fill the IDT with gates to the stubs below and load it. RBX = block. Spoils RAX, RCX, RDX, RDI. */
catch_exceptions:
	leaq	stubs(%rip), %rax
	leaq	BLOCK_IDT(%rbx), %rdi
	movl	$32, %ecx
.Lnext_gate:
	movw	%ax, (%rdi)
	movw	$CODE_SELECTOR, 2(%rdi)
	movw	$0x8e00, 4(%rdi)
	movq	%rax, %rdx
	shrq	$16, %rdx
	movw	%dx, 6(%rdi)
	shrq	$16, %rdx
	movq	%rdx, 8(%rdi)
	addq	$stubs_size, %rax
	addq	$16, %rdi
	loop	.Lnext_gate
	leaq	BLOCK_IDT(%rbx), %rax
	movw	$(32 * 16 - 1), BLOCK_IDT_POINTER(%rbx)
	movq	%rax, BLOCK_IDT_POINTER + 2(%rbx)
	lidt	BLOCK_IDT_POINTER(%rbx)
	ret

	.balign 8
stubs:
	.set	vector, 0
	.rept	32
	.balign 8
	pushq	$vector
	jmp	exception
	.balign 8
	.set	vector, vector + 1
	.endr
	.set	stubs_size, (. - stubs) / 32

exception:
	movq	block(%rip), %rbx
	popq	%rcx
	leaq	1(%rcx), %rax
	movq	%rax, BLOCK_FAULT(%rbx)
	movl	$HAS_ERROR_CODE, %eax
	xorl	%edx, %edx
	btl	%ecx, %eax
	jnc	.Lno_error_code
	popq	%rdx
.Lno_error_code:
	movq	%rdx, BLOCK_FAULT_CODE(%rbx)
	movq	(%rsp), %rax
	movq	%rax, BLOCK_FAULT_IP(%rbx)
	movq	%cr2, %rax
	movq	%rax, BLOCK_FAULT_ADDRESS(%rbx)
	xorl	%edx, %edx
	jmp	leave_function

	.balign 8
block:
	.quad	0 /* the block's address, for code that has no free register */
fresh_mxcsr:
	.long	0x1f80 /* MXCSR's value after reset: all exceptions masked, round to nearest */

	.section .note.GNU-stack, "", @progbits

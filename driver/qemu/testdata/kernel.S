# A kernel of one screen, for tests of direct kernel boot (Multiboot, which QEMU
# loads by -kernel as it does Linux): it prints its command line and the start of
# its initial RAM disk on COM1, and halts.
#
#   as --32 kernel.S -o kernel.o && ld -m elf_i386 -Ttext 0x100000 --oformat binary kernel.o -o kernel.bin
.intel_syntax noprefix
.globl _start
.set FLAGS, 0x10003			# the addresses below count; align modules, tell of memory
header:	.long 0x1badb002, FLAGS, -(0x1badb002 + FLAGS)
	.long header, header, end, end + 4096, _start
_start:	mov esp, offset end + 4096
	cld
	mov edi, ebx			# what the loader tells
	mov esi, offset hello
	call puts
	mov esi, [edi + 16]		# the command line
	call puts
	mov esi, offset disk
	call puts
	cmp dword ptr [edi + 20], 0	# modules
	je 1f
	mov eax, [edi + 24]
	mov esi, [eax]
	call puts
1:	mov esi, offset done
	call puts
2:	hlt
	jmp 2b
puts:	mov dx, 0x3f8
3:	lodsb
	test al, al
	jz 4f
	out dx, al
	jmp 3b
4:	ret
hello:	.asciz "kernel up: "
disk:	.asciz "\r\ninitrd: "
done:	.asciz "\r\ndone\r\n"
end:

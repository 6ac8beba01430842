# An operating system of two sectors, for tests: up as soon as the firmware is
# done. It greets on COM1, then prints the text at the start of the second
# sector; stops when the power button is pressed; lets go of devices that are to
# be unplugged; and obeys single characters on COM1:
#   o  power off    r  reboot    d  be deaf to the power button from now on
#   w  write "used" over the text in the second sector    f  flood COM1 until the next character
#
#   as --32 guest.S -o guest.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary guest.o -o guest.bin
.code16
.intel_syntax noprefix
.globl _start
_start:
	cli
	xor ax, ax
	mov ds, ax
	mov es, ax
	mov ss, ax
	mov sp, 0x7c00
	cld
	mov [drive], dl
	mov dx, 0x3fb			# COM1: 8 bits, no parity
	mov al, 0x03
	out dx, al
	mov dx, 0x602			# PM1 enable: the power button
	mov ax, 0x0100
	out dx, ax
	mov al, 0x34			# a timer interrupt each millisecond, to wake up from hlt
	out 0x43, al
	mov ax, 1193
	out 0x40, al
	mov al, ah
	out 0x40, al
	mov si, offset hello
	call puts
	mov ah, 0x42			# read the second sector
	call disk
	mov si, 0x7e00
	call puts

loop:	sti
	hlt
	cli
	mov dx, 0x600			# PM1 status: was the power button pressed?
	in ax, dx
	test ax, 0x0100
	jz 2f
	out dx, ax
	cmp byte ptr [deaf], 0
	je off
2:	call poll
	jz 3f
	call putc
	cmp al, 'o'
	je off
	cmp al, 'r'
	je reboot
	cmp al, 'd'
	je bedeaf
	cmp al, 'f'
	je flood
	cmp al, 'w'
	jne 3f
	mov dword ptr [0x7e00], 0x64657375	# "used"
	mov ah, 0x43
	call disk
	mov al, '.'
	call putc
	jmp loop
3:	xor ebx, ebx			# ACPI PCI hotplug: eject what is on its way out, on every bus
4:	mov dx, 0x0cc0+0x10
	mov eax, ebx
	out dx, eax
	mov dx, 0x0cc0+4
	in eax, dx
	test eax, eax
	jz 5f
	mov dx, 0x0cc0+8
	out dx, eax
5:	inc ebx
	cmp bl, 48
	jb 4b
	jmp loop

off:	mov al, 'X'
	call putc
	mov dx, 0x604			# PM1 control: S5
	mov ax, 0x2000
	out dx, ax
6:	hlt
	jmp 6b
reboot:	mov al, 0xfe
	out 0x64, al
	jmp 6b
bedeaf:	mov byte ptr [deaf], 1
	jmp loop
flood:	mov si, offset line
	call puts
	call poll
	jz flood
	call putc			# as every character: who sent it may have come too late for the flood
	jmp loop

poll:	mov dx, 0x3fd			# a character, and not zero, if there is one
	in al, dx
	test al, 1
	jz 8f
	mov dx, 0x3f8
	in al, dx
	test al, al
8:	ret
puts:	lodsb
	test al, al
	jz 9f
	call putc
	jmp puts
9:	ret
putc:	push ax
	mov dx, 0x3fd
7:	in al, dx
	test al, 0x20
	jz 7b
	pop ax
	mov dx, 0x3f8
	out dx, al
	ret
disk:	mov dl, [drive]
	mov si, offset packet
	xor al, al
	sti
	int 0x13
	cli
	ret

packet:	.byte 16, 0
	.word 1, 0x7e00, 0		# one sector, to or from here
	.quad 1				# the second one
drive:	.byte 0
deaf:	.byte 0
hello:	.asciz "guest up\r\n"
line:	.asciz "0123456789abcdef0123456789abcdef0123456789abcdef\r\n"
.org 510
.word 0xaa55
.asciz "fresh\r\n"
.org 1024

# SPDX-License-Identifier: BSD-2-Clause
#
# A whole guest in one boot sector. It keeps a counter in sector 1 of the disk
# it was booted from: a 32-bit number and its complement, so that a torn or
# misplaced write shows. It says "found N" once, then counts, writes the sector
# through the BIOS, reads it back, and says "wrote N" (hexadecimal), for ever.
# Any failure is one line, and the machine halts.
#
# Reference: INT 13h extensions (EDD), 16550 UART. Linked at 0x7c00.

        .code16
        .text

        .set    com1_data, 0x3f8
        .set    com1_status, 0x3fd      # bit 5: ready for a byte
        .set    tick_count, 0x46c       # BIOS: 18.2 a second
        .set    buffer, 0x1000          # one sector, free memory

        .globl  _start
_start:
        ljmp    $0, $main
main:
        xorw    %bx, %bx
        movw    %bx, %ss
        movw    $_start, %sp
        movw    %bx, %ds
        movw    %bx, %es
        cld
        movb    %dl, boot_drive

        movb    $0x42, %ah
        call    transfer
        movl    buffer, %edi            # %edi: the counter
        movl    buffer + 4, %eax
        orl     %edi, %eax
        jz      fresh                   # never written: all zeros
        movl    buffer + 4, %eax
        notl    %eax
        cmpl    %edi, %eax
        movw    $text_torn, %si
        jne     stop
fresh:
        movw    $text_found, %si
        call    report

again:
        incl    %edi
        movl    %edi, buffer
        movl    %edi, %eax
        notl    %eax
        movl    %eax, buffer + 4
        movb    $0x43, %ah
        call    transfer
        movl    $0, buffer              # so that the read has to bring it
        movb    $0x42, %ah
        call    transfer
        cmpl    %edi, buffer
        movw    $text_torn, %si
        jne     stop
        movw    $text_wrote, %si
        call    report
        movw    tick_count, %bx
tick:
        hlt
        cmpw    tick_count, %bx
        je      tick
        jmp     again

# Reads (%ah = 0x42) or writes (0x43, without verifying) the counter's sector.
transfer:
        pushl   %edi
        xorb    %al, %al
        movb    boot_drive, %dl
        movw    $packet, %si
        int     $0x13
        popl    %edi
        movw    $text_error, %si
        jc      stop
        ret

# Says the text at %si and halts.
stop:
        call    say
halt:
        cli
        hlt
        jmp     halt

# Says the text at %si, then %edi in hexadecimal, then a newline.
report:
        call    say
        movl    %edi, %ecx
        movb    $8, %bl
digit:
        roll    $4, %ecx
        movb    %cl, %al
        andb    $0x0f, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     decimal
        addb    $('a' - '9' - 1), %al
decimal:
        call    send
        decb    %bl
        jnz     digit
        movw    $text_newline, %si
say:
        lodsb
        testb   %al, %al
        jz      said
        call    send
        jmp     say
said:
        ret

# Sends the byte in %al; %dx and %ah are lost.
send:
        movb    %al, %ah
        movw    $com1_status, %dx
busy:
        inb     %dx, %al
        testb   $0x20, %al
        jz      busy
        movb    %ah, %al
        movw    $com1_data, %dx
        outb    %al, %dx
        ret

boot_drive:
        .byte   0
packet: .byte   16, 0                   # size of this packet
        .word   1                       # sectors
        .word   buffer, 0               # offset, segment
        .quad   1                       # from sector 1
text_found:
        .asciz  "guest: found "
text_wrote:
        .asciz  "guest: wrote "
text_torn:
        .asciz  "guest: the counter is torn\n"
text_error:
        .asciz  "guest: disk error\n"
text_newline:
        .asciz  "\n"

        .org    510
        .word   0xaa55

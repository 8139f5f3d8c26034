// The commands of docs/protocol.md, as far as the two programs send or receive them.
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
)

const (
	typeClientHello = 0
	typeServerHello = 1
	typeConnect     = 2
	typePacket      = 3
	typeDissociate  = 4
	typeHeartbeat   = 5

	familyIPv4 = 0x01
	familyIPv6 = 0x04

	uuidSize  = 16
	tokenSize = 32
	// TCP and UDP native, the same in both dialects.
	modeBoth = 3

	clientHelloSize  = 2 + uuidSize + tokenSize + 1 + 2 + 2
	packetHeaderSize = 2 + 2 + 2 + 1 + 1 + 2
)

var heartbeat = []byte{0, typeHeartbeat}

// begins checks version and type of a command.
func begins(command []byte, kind byte) error {
	if len(command) < 2 || command[0] != 0 || command[1] != kind {
		return fmt.Errorf("not a command of type %d: %x", kind, command)
	}
	return nil
}

func clientHello(uuid, token []byte, first, last uint16) []byte {
	hello := append([]byte{0, typeClientHello}, uuid...)
	hello = append(append(hello, token...), modeBoth)
	hello = binary.BigEndian.AppendUint16(hello, first)
	return binary.BigEndian.AppendUint16(hello, last)
}

func serverHello(port uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{0, typeServerHello, 0}, port)
}

// openedPort reads a whole ServerHello.
func openedPort(hello []byte) (uint16, error) {
	if err := begins(hello, typeServerHello); err != nil {
		return 0, err
	}
	if len(hello) != 5 || hello[2] != 0 {
		return 0, fmt.Errorf("refused: %x", hello)
	}
	return binary.BigEndian.Uint16(hello[3:]), nil
}

func appendAddress(command []byte, address netip.AddrPort) []byte {
	family := byte(familyIPv4)
	if address.Addr().Is6() {
		family = familyIPv6
	}
	command = append(append(command, family), address.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(command, address.Port())
}

// addressSize is the length of an address with its family byte and port.
func addressSize(family byte) (int, error) {
	switch family {
	case familyIPv4:
		return 7, nil
	case familyIPv6:
		return 19, nil
	}
	return 0, fmt.Errorf("not the family of an address: %#x", family)
}

func connectCommand(source netip.AddrPort) []byte {
	return appendAddress([]byte{0, typeConnect}, source)
}

// readConnect takes a Connect from the beginning of a stream, and not a byte of what follows.
func readConnect(stream io.Reader) error {
	command := make([]byte, 3)
	if _, err := io.ReadFull(stream, command); err != nil {
		return err
	}
	if err := begins(command, typeConnect); err != nil {
		return err
	}
	size, err := addressSize(command[2])
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, stream, int64(size-1))
	return err
}

// packet is a whole UDP packet; the programs have no fragments.
type packet struct {
	association, number uint16
	address             []byte // as on the wire
	payload             []byte
}

func (p packet) encoded() []byte {
	command := binary.BigEndian.AppendUint16([]byte{0, typePacket}, p.association)
	command = binary.BigEndian.AppendUint16(command, p.number)
	command = append(command, 1, 0)
	command = binary.BigEndian.AppendUint16(command, uint16(len(p.payload)))
	return append(append(command, p.address...), p.payload...)
}

func decodePacket(command []byte) (packet, error) {
	if err := begins(command, typePacket); err != nil {
		return packet{}, err
	}
	if len(command) < packetHeaderSize+1 || command[6] != 1 || command[7] != 0 {
		return packet{}, fmt.Errorf("not a whole Packet: %x", command)
	}
	size, err := addressSize(command[packetHeaderSize])
	if err != nil {
		return packet{}, err
	}
	rest := command[packetHeaderSize:]
	length := int(binary.BigEndian.Uint16(command[8:]))
	if len(rest) != size+length {
		return packet{}, fmt.Errorf("a Packet of the wrong length: %x", command)
	}
	return packet{
		association: binary.BigEndian.Uint16(command[2:]),
		number:      binary.BigEndian.Uint16(command[4:]),
		address:     rest[:size],
		payload:     rest[size:],
	}, nil
}

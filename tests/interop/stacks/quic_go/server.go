package main

import (
	"context"
	"crypto/hmac"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// The largest UDP payload there is.
const largestDatagram = 65507

// Between two looks at the client's address.
const lookPeriod = 20 * time.Millisecond

// runServer accepts one client after another until the end of the context. Each gets the same public address, for TCP
// and for UDP.
func runServer(ended context.Context, listen, public, certificate, key, uuidText, password string) error {
	uuid, err := parseUUID(uuidText)
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{alpn}}
	listener, err := quic.ListenAddr(listen, config, quicConfig())
	if err != nil {
		return err
	}
	defer listener.Close()
	fmt.Println("listening on", listener.Addr())
	for {
		conn, err := listener.Accept(ended)
		if err != nil {
			return err
		}
		err = serveClient(ended, conn, public, uuid, password)
		conn.CloseWithError(closed, "")
		fmt.Println("client gone:", err)
	}
}

func serveClient(ended context.Context, conn *quic.Conn, public string, uuid []byte, password string) error {
	if err := authenticate(ended, conn, uuid, password); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", public)
	if err != nil {
		return err
	}
	defer listener.Close()
	socket, err := net.ListenPacket("udp", public)
	if err != nil {
		return err
	}
	defer socket.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	if err := sendCommand(conn, serverHello(uint16(port))); err != nil {
		return err
	}
	fmt.Printf("joined, port %d\n", port)
	udp := &associations{conn: conn, socket: socket.(*net.UDPConn), byUser: map[netip.AddrPort]*association{}}
	fault := make(chan error, 4)
	go func() { fault <- acceptConnections(conn, listener) }()
	go func() { fault <- udp.fromUsers() }()
	go func() { fault <- udp.fromClient(ended) }()
	ticker := time.NewTicker(lookPeriod)
	defer ticker.Stop()
	for at := ""; ; {
		if now := conn.RemoteAddr().String(); now != at {
			at = now
			fmt.Println("client at", at)
		}
		select {
		case err := <-fault:
			return err
		case <-conn.Context().Done():
			return context.Cause(conn.Context())
		case <-ended.Done():
			return ended.Err()
		case <-ticker.C:
		}
	}
}

func authenticate(ended context.Context, conn *quic.Conn, uuid []byte, password string) error {
	stream, err := conn.AcceptUniStream(ended)
	if err != nil {
		return err
	}
	hello, err := io.ReadAll(stream)
	if err != nil {
		return err
	}
	if err := begins(hello, typeClientHello); err != nil {
		return err
	}
	expected, err := token(conn, uuid, password)
	if err != nil {
		return err
	}
	anyPort := binary.BigEndian.AppendUint16(nil, 1)
	anyPort = binary.BigEndian.AppendUint16(anyPort, 65535)
	rest := append([]byte{modeBoth}, anyPort...)
	switch {
	case len(hello) != clientHelloSize:
		return fmt.Errorf("a ClientHello of %d bytes", len(hello))
	case !hmac.Equal(hello[2:2+uuidSize+tokenSize], append(uuid[:uuidSize:uuidSize], expected...)):
		return errors.New("wrong user or token")
	case string(hello[2+uuidSize+tokenSize:]) != string(rest):
		return fmt.Errorf("not a ClientHello for TCP and UDP native on any port: %x", hello[2+uuidSize+tokenSize:])
	}
	return nil
}

// acceptConnections opens a stream for each connection of the public port.
func acceptConnections(conn *quic.Conn, listener net.Listener) error {
	for {
		user, err := listener.Accept()
		if err != nil {
			return err
		}
		stream, err := conn.OpenStream()
		if err == nil {
			_, err = stream.Write(connectCommand(user.RemoteAddr().(*net.TCPAddr).AddrPort()))
		}
		if err != nil {
			user.Close()
			return err
		}
		go relay(stream, user.(*net.TCPConn))
	}
}

// associations are the UDP users of a public port.
type associations struct {
	conn   *quic.Conn
	socket *net.UDPConn

	lock   sync.Mutex
	byUser map[netip.AddrPort]*association // guarded by lock
	all    []*association                  // the same in order, numbered from 1; guarded by lock
}

type association struct {
	user    netip.AddrPort
	address []byte // the user's, as on the wire
	number  uint16
	sent    uint16 // packets sent to the client; fromUsers alone uses it
}

func (a *associations) of(user netip.AddrPort) *association {
	a.lock.Lock()
	defer a.lock.Unlock()
	found, known := a.byUser[user]
	if !known {
		found = &association{user: user, address: appendAddress(nil, user), number: uint16(len(a.all) + 1)}
		a.byUser[user] = found
		a.all = append(a.all, found)
	}
	return found
}

func (a *associations) numbered(number uint16) *association {
	a.lock.Lock()
	defer a.lock.Unlock()
	if number < 1 || int(number) > len(a.all) {
		return nil
	}
	return a.all[number-1]
}

func (a *associations) fromUsers() error {
	payload := make([]byte, largestDatagram)
	for {
		size, user, err := a.socket.ReadFromUDPAddrPort(payload)
		if err != nil {
			return err
		}
		to := a.of(user)
		command := packet{to.number, to.sent, to.address, payload[:size]}
		to.sent++
		if err := a.conn.SendDatagram(command.encoded()); err != nil {
			return err
		}
	}
}

func (a *associations) fromClient(ended context.Context) error {
	for {
		command, err := a.conn.ReceiveDatagram(ended)
		if err != nil {
			return err
		}
		if string(command) == string(heartbeat) {
			continue
		}
		answer, err := decodePacket(command)
		if err != nil {
			return err
		}
		to := a.numbered(answer.association)
		if to == nil || string(to.address) != string(answer.address) {
			return fmt.Errorf("a Packet for no association: %x", command)
		}
		if _, err := a.socket.WriteToUDPAddrPort(answer.payload, to.user); err != nil {
			return err
		}
	}
}

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
)

// The server ends a connection that is silent for 10 s.
const heartbeatPeriod = 3 * time.Second

// How long the server may take to answer on a new path. Only a failure waits so long.
const probeTimeout = 20 * time.Second

type client struct {
	conn      *quic.Conn
	transport *quic.Transport // the one that is in use
	path      *quic.Path      // the same, nil before the first migration
	retired   []*quic.Transport
	local     string
}

// runClient joins a server and serves it until the end of the context: each TCP connection is relayed to a local
// address, and each UDP packet echoed.
func runClient(ended context.Context, server, local, trusted, uuidText, password string) error {
	uuid, err := parseUUID(uuidText)
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(trusted)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	address, err := net.ResolveUDPAddr("udp", server)
	if err != nil {
		return err
	}
	c := &client{local: local}
	if c.transport, err = newTransport(); err != nil {
		return err
	}
	config := &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: []string{alpn}}
	if c.conn, err = c.transport.Dial(ended, address, config, quicConfig()); err != nil {
		return err
	}
	defer c.close()
	if err := c.join(ended, uuid, password); err != nil {
		return err
	}
	return c.serve(ended)
}

func newTransport() (*quic.Transport, error) {
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	return &quic.Transport{Conn: socket}, nil
}

func (c *client) close() {
	c.conn.CloseWithError(closed, "")
	for _, transport := range append(c.retired, c.transport) {
		transport.Close()
		transport.Conn.Close()
	}
}

func (c *client) join(ended context.Context, uuid []byte, password string) error {
	token, err := token(c.conn, uuid, password)
	if err != nil {
		return err
	}
	if err := sendCommand(c.conn, clientHello(uuid, token, 1, 65535)); err != nil {
		return err
	}
	stream, err := c.conn.AcceptUniStream(ended)
	if err != nil {
		return err
	}
	hello, err := io.ReadAll(stream)
	if err != nil {
		return err
	}
	port, err := openedPort(hello)
	if err != nil {
		return err
	}
	fmt.Printf("joined, port %d\n", port)
	return nil
}

// serve returns with the first fault of any part.
func (c *client) serve(ended context.Context) error {
	fault := make(chan error, 4)
	go func() { fault <- c.relayConnections(ended) }()
	go func() { fault <- c.echoPackets(ended) }()
	go func() { fault <- c.readCommands(ended) }()
	migrate := make(chan os.Signal, 1)
	signal.Notify(migrate, syscall.SIGUSR1)
	ticker := time.NewTicker(heartbeatPeriod)
	defer ticker.Stop()
	for {
		select {
		case err := <-fault:
			return err
		case <-ended.Done():
			return nil
		case <-ticker.C:
			if err := c.conn.SendDatagram(heartbeat); err != nil {
				return err
			}
		case <-migrate:
			if err := c.migrate(ended); err != nil {
				return err
			}
		}
	}
}

func (c *client) relayConnections(ended context.Context) error {
	for {
		stream, err := c.conn.AcceptStream(ended)
		if err != nil {
			return err
		}
		go func() {
			if err := readConnect(stream); err != nil {
				fmt.Println("no Connect:", err)
			} else if tcp, err := net.Dial("tcp", c.local); err == nil {
				relay(stream, tcp.(*net.TCPConn))
				return
			}
			stream.CancelWrite(unrelayed)
			stream.CancelRead(unrelayed)
		}()
	}
}

func (c *client) echoPackets(ended context.Context) error {
	sent := map[uint16]uint16{} // the next packet number of each association
	for {
		command, err := c.conn.ReceiveDatagram(ended)
		if err != nil {
			return err
		}
		packet, err := decodePacket(command)
		if err != nil {
			return err
		}
		packet.number = sent[packet.association]
		sent[packet.association]++
		if err := c.conn.SendDatagram(packet.encoded()); err != nil {
			return err
		}
	}
}

// readCommands checks what may come on unidirectional streams after the ServerHello.
func (c *client) readCommands(ended context.Context) error {
	for {
		stream, err := c.conn.AcceptUniStream(ended)
		if err != nil {
			return err
		}
		command, err := io.ReadAll(stream)
		if err != nil {
			return err
		}
		if err := begins(command, typeDissociate); err != nil {
			return err
		}
	}
}

// migrate moves the connection to a new socket, once the server has answered there. The old one must stay: closing its
// transport would end the connection, which was made on it.
func (c *client) migrate(ended context.Context) error {
	transport, err := newTransport()
	if err != nil {
		return err
	}
	path, err := c.conn.AddPath(transport)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ended, probeTimeout)
	defer cancel()
	if err := path.Probe(limited); err != nil {
		return err
	}
	if err := path.Switch(); err != nil {
		return err
	}
	if c.path != nil {
		if err := c.path.Close(); err != nil { // gives its connection ID back: there are four at a time
			return err
		}
	}
	c.retired = append(c.retired, c.transport)
	c.transport, c.path = transport, path
	fmt.Println("migrated to", transport.Conn.LocalAddr())
	return nil
}

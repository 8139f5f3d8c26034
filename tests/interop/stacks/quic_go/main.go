// An ASPORT peer on quic-go: as much of it as the tests against another QUIC stack need, as client and as server.
//
//	quic_go client SERVER LOCAL TRUSTED UUID PASSWORD
//	quic_go server LISTEN PUBLIC CERTIFICATE KEY UUID PASSWORD
//
// Addresses are HOST:PORT, files are PEM. What happens is written to standard output, a line each: "joined, port N",
// "migrated to HOST:PORT", "client at HOST:PORT", "keys updated (local_update)". SIGUSR1 makes the client migrate;
// keys are updated by quic-go itself, first after 100 packets. SIGTERM closes the connection and ends the program; any
// fault ends it with status 1.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
)

const alpn = "asport"

// Application and stream error codes of ASPORT.
const (
	closed    quic.ApplicationErrorCode = 0
	cutShort  quic.StreamErrorCode      = 1
	unrelayed quic.StreamErrorCode      = 2
)

func main() {
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ended, os.Args[1:]); err != nil && ended.Err() == nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func run(ended context.Context, args []string) error {
	switch {
	case len(args) == 6 && args[0] == "client":
		return runClient(ended, args[1], args[2], args[3], args[4], args[5])
	case len(args) == 7 && args[0] == "server":
		return runServer(ended, args[1], args[2], args[3], args[4], args[5], args[6])
	}
	return errors.New("usage: client SERVER LOCAL TRUSTED UUID PASSWORD | " +
		"server LISTEN PUBLIC CERTIFICATE KEY UUID PASSWORD")
}

func quicConfig() *quic.Config {
	return &quic.Config{
		MaxIdleTimeout:  10 * time.Second,
		EnableDatagrams: true,
		Tracer: func(context.Context, bool, quic.ConnectionID) qlogwriter.Trace {
			return keyUpdates{}
		},
	}
}

// keyUpdates is a trace that says when keys were updated, and nothing else.
type keyUpdates struct{}

func (keyUpdates) AddProducer() qlogwriter.Recorder { return keyUpdates{} }
func (keyUpdates) Close() error                     { return nil }

func (keyUpdates) RecordEvent(event qlogwriter.Event) {
	// There is another event for the server's key of the same update.
	if update, is := event.(qlog.KeyUpdated); is && update.KeyType == qlog.KeyTypeClient1RTT {
		if update.Trigger != qlog.KeyUpdateTLS { // that is the handshake
			fmt.Printf("keys updated (%s)\n", update.Trigger)
		}
	}
}

// token proves the password on this connection alone.
func token(conn *quic.Conn, uuid []byte, password string) ([]byte, error) {
	state := conn.ConnectionState().TLS
	return state.ExportKeyingMaterial(string(uuid), []byte(password), tokenSize)
}

func parseUUID(text string) ([]byte, error) {
	uuid, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err == nil && len(uuid) != uuidSize {
		err = fmt.Errorf("not a UUID: %s", text)
	}
	return uuid, err
}

// sendCommand puts one command on a unidirectional stream of its own.
func sendCommand(conn *quic.Conn, command []byte) error {
	stream, err := conn.OpenUniStream()
	if err != nil {
		return err
	}
	if _, err := stream.Write(command); err != nil {
		return err
	}
	return stream.Close()
}

// relay carries bytes and the ends of both directions between a stream and a TCP connection, which it closes.
func relay(stream *quic.Stream, tcp *net.TCPConn) {
	defer tcp.Close()
	fromTCP := make(chan error, 1)
	go func() {
		_, err := io.Copy(stream, tcp)
		if err != nil {
			stream.CancelWrite(cutShort)
			stream.CancelRead(cutShort) // ends the other direction, too
		} else {
			err = stream.Close()
		}
		fromTCP <- err
	}()
	_, err := io.Copy(tcp, stream)
	if err != nil {
		stream.CancelRead(cutShort)
		tcp.SetLinger(0) // what follows is a reset
		tcp.Close()      // ends the other direction, too
	} else {
		tcp.CloseWrite()
	}
	<-fromTCP
}

//! A client of ASPORT on s2n-quic: as much of it as the tests against another QUIC stack need.
//!
//! ```text
//! s2n-quic-client SERVER LOCAL TRUSTED UUID PASSWORD
//! ```
//!
//! Addresses are IP:PORT, TRUSTED is a PEM file. TCP connections are relayed to LOCAL, UDP packets echoed. "joined, port
//! N" is written to standard output. SIGTERM closes the connection and ends the program; a fault ends it with status 1.
//! s2n-quic has no way to ask for a migration or for new keys.

use std::collections::HashMap;
use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::Path;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use s2n_quic::client::{Client, Connect};
use s2n_quic::connection::{Handle, StreamAcceptor};
use s2n_quic::provider::datagram::default::{Endpoint as Datagrams, Receiver, Sender};
use s2n_quic::provider::event::{events, ConnectionInfo, ConnectionMeta, Subscriber};
use s2n_quic::provider::tls::rustls;
use s2n_quic::stream::{BidirectionalStream, PeerStream, ReceiveStream};
use tokio::io::{copy_bidirectional, join, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{signal, SignalKind};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CONNECT: [u8; 2] = [0, 2];
const PACKET: [u8; 2] = [0, 3];
const DISSOCIATE: [u8; 2] = [0, 4];
const HEARTBEAT: [u8; 2] = [0, 5];
/// TCP and UDP native, the same in both dialects.
const MODE_BOTH: u8 = 3;
const PACKET_HEADER: usize = 10;
/// Stream error codes: a relay that was cut short, and one that never began.
const CUT_SHORT: u8 = 1;
const UNRELAYED: u8 = 2;
/// Datagrams that may wait in each direction.
const DATAGRAMS: usize = 256;
/// The server ends a connection that is silent for 10 s.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(3);

/// Exports the token, which s2n-quic allows at one moment only. The context of a connection is its token.
struct Exporter {
    uuid: [u8; 16],
    password: String,
}

impl Subscriber for Exporter {
    type ConnectionContext = Option<[u8; 32]>;

    fn create_connection_context(&mut self, _: &ConnectionMeta, _: &ConnectionInfo) -> Self::ConnectionContext {
        None
    }

    fn on_tls_exporter_ready(
        &mut self,
        context: &mut Self::ConnectionContext,
        _: &ConnectionMeta,
        event: &events::TlsExporterReady,
    ) {
        let mut token = [0; 32];
        let exported = event.session.tls_exporter(&self.uuid, self.password.as_bytes(), &mut token);
        *context = exported.is_ok().then_some(token);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, local, trusted, uuid, password] = arguments.as_slice() else {
        return Err("usage: s2n-quic-client SERVER LOCAL TRUSTED UUID PASSWORD".into());
    };
    let uuid = parse_uuid(uuid)?;
    let tls = rustls::Client::builder()
        .with_certificate(Path::new(trusted))?
        .with_application_protocols([b"asport"].into_iter())?
        .build()?;
    let datagrams = Datagrams::builder().with_send_capacity(DATAGRAMS)?.with_recv_capacity(DATAGRAMS)?.build()?;
    let mut client = Client::builder()
        .with_tls(tls)?
        .with_io("127.0.0.1:0")?
        .with_event(Exporter { uuid, password: password.clone() })?
        .with_datagram(datagrams)?
        .start()?;
    let server: SocketAddr = server.parse()?;
    let (mut handle, mut acceptor) = client.connect(Connect::new(server).with_server_name("localhost")).await?.split();
    let port = join_server(&mut handle, &mut acceptor, &uuid).await?;
    println!("joined, port {port}");
    serve(&handle, &mut acceptor, local.parse()?).await?;
    handle.close(0u8.into());
    drop((handle, acceptor));
    client.wait_idle().await?;
    Ok(())
}

fn parse_uuid(text: &str) -> Outcome<[u8; 16]> {
    Ok(u128::from_str_radix(&text.replace('-', ""), 16)?.to_be_bytes())
}

/// Sends ClientHello, and returns the public port of the ServerHello.
async fn join_server(handle: &mut Handle, acceptor: &mut StreamAcceptor, uuid: &[u8; 16]) -> Outcome<u16> {
    let token = handle.query_event_context(|context: &Option<[u8; 32]>| *context)?.ok_or("no token")?;
    let hello = [&[0, 0], &uuid[..], &token, &[MODE_BOTH], &[0, 1, 255, 255]].concat();
    let mut stream = handle.open_send_stream().await?;
    stream.send(hello.into()).await?;
    stream.finish()?;
    let answer = whole_command(acceptor.accept_receive_stream().await?.ok_or("the connection has ended")?).await?;
    match answer[..] {
        [0, 1, 0, high, low] => Ok(u16::from_be_bytes([high, low])),
        _ => Err(format!("not a ServerHello with success: {answer:02x?}").into()),
    }
}

/// Reads a unidirectional stream to its end.
async fn whole_command(mut stream: ReceiveStream) -> Outcome<Vec<u8>> {
    let mut command = Vec::new();
    stream.read_to_end(&mut command).await?;
    Ok(command)
}

/// Does what the server asks for, until SIGTERM or the first fault.
async fn serve(handle: &Handle, acceptor: &mut StreamAcceptor, local: SocketAddr) -> Outcome<()> {
    let mut end = signal(SignalKind::terminate())?;
    let mut ticker = tokio::time::interval(HEARTBEAT_PERIOD);
    // The next packet number of each association.
    let mut numbers: HashMap<[u8; 2], u16> = HashMap::new();
    loop {
        tokio::select! {
            _ = ticker.tick() => send_datagram(handle, HEARTBEAT.to_vec())?,
            stream = acceptor.accept() => match stream?.ok_or("the connection has ended")? {
                PeerStream::Bidirectional(stream) => {
                    tokio::spawn(relay(stream, local));
                }
                PeerStream::Receive(stream) => {
                    let command = whole_command(stream).await?;
                    if command.len() != 4 || !command.starts_with(&DISSOCIATE) {
                        return Err(format!("not a Dissociate: {command:02x?}").into());
                    }
                }
            },
            packet = receive_datagram(handle) => {
                let mut packet = packet?.to_vec();
                let number = numbers.entry(association_of(&packet)?).or_default();
                packet[4..6].copy_from_slice(&number.to_be_bytes());
                *number = number.wrapping_add(1);
                send_datagram(handle, packet)?;
            }
            _ = end.recv() => return Ok(()),
        }
    }
}

fn send_datagram(handle: &Handle, datagram: Vec<u8>) -> Outcome<()> {
    let sent = handle.datagram_mut(|sender: &mut Sender| sender.send_datagram(datagram.into()))?;
    sent.map_err(|fault| fault.to_string().into())
}

async fn receive_datagram(handle: &Handle) -> Outcome<Bytes> {
    poll_fn(|context| match handle.datagram_mut(|receiver: &mut Receiver| receiver.poll_recv_datagram(context)) {
        Ok(polled) => polled.map_err(|fault| fault.to_string().into()),
        Err(fault) => Poll::Ready(Err(fault.into())),
    })
    .await
}

/// The length of an address by its family byte, with that byte and the port.
fn address_size(family: u8) -> Outcome<usize> {
    match family {
        0x01 => Ok(7),
        0x04 => Ok(19),
        _ => Err(format!("not the family of an address: {family:#x}").into()),
    }
}

/// Checks that a datagram is a whole UDP packet, without fragments, and returns its association.
fn association_of(packet: &[u8]) -> Outcome<[u8; 2]> {
    let fault = || format!("not a whole Packet: {packet:02x?}");
    if packet.len() <= PACKET_HEADER || !packet.starts_with(&PACKET) || packet[6..8] != [1, 0] {
        return Err(fault().into());
    }
    let payload = usize::from(u16::from_be_bytes([packet[8], packet[9]]));
    if packet.len() != PACKET_HEADER + address_size(packet[PACKET_HEADER])? + payload {
        return Err(fault().into());
    }
    Ok([packet[2], packet[3]])
}

/// Carries bytes and the ends of both directions between a stream and a connection to the local service.
async fn relay(stream: BidirectionalStream, local: SocketAddr) {
    let (mut receive, mut send) = stream.split();
    let begun = async {
        read_connect(&mut receive).await?;
        Outcome::Ok(TcpStream::connect(local).await?)
    };
    let mut code = UNRELAYED;
    let fault = match begun.await {
        Ok(mut tcp) => {
            code = CUT_SHORT;
            let mut stream = join(&mut receive, &mut send);
            copy_bidirectional(&mut stream, &mut tcp).await.err().map(Into::into)
        }
        Err(fault) => Some(fault),
    };
    if let Some(fault) = fault {
        println!("relay: {fault}");
        // An error is that the direction has ended already.
        let _ = send.reset(code.into());
        let _ = receive.stop_sending(code.into());
    }
}

/// Takes a Connect from the beginning of a stream, and not a byte of what follows.
async fn read_connect(receive: &mut ReceiveStream) -> Outcome<()> {
    let mut begin = [0; 3];
    receive.read_exact(&mut begin).await?;
    if !begin.starts_with(&CONNECT) {
        return Err(format!("not a Connect: {begin:02x?}").into());
    }
    let mut rest = vec![0; address_size(begin[2])? - 1];
    receive.read_exact(&mut rest).await?;
    Ok(())
}

//! A client of ASPORT on quinn: as much of it as the tests against another QUIC stack need.
//!
//! ```text
//! quinn-client SERVER LOCAL TRUSTED UUID PASSWORD
//! ```
//!
//! Addresses are IP:PORT, TRUSTED is a PEM file. TCP connections are relayed to LOCAL, UDP packets echoed. What happens
//! is written to standard output, a line each: "joined, port N", "migrated to IP:PORT", "keys updated". SIGUSR1 makes it
//! migrate, SIGUSR2 update its keys; SIGTERM closes the connection and ends the program. A fault ends it with status 1.

use std::collections::HashMap;
use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, VarInt};
use rustls::pki_types::{pem::PemObject, CertificateDer};
use tokio::io::{copy_bidirectional, join};
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
const CUT_SHORT: VarInt = VarInt::from_u32(1);
const UNRELAYED: VarInt = VarInt::from_u32(2);
/// The longest command on a unidirectional stream.
const LONGEST_COMMAND: usize = 64;
/// The server ends a connection that is silent for 10 s.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(3);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, local, trusted, uuid, password] = arguments.as_slice() else {
        return Err("usage: quinn-client SERVER LOCAL TRUSTED UUID PASSWORD".into());
    };
    let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into())?;
    endpoint.set_default_client_config(client_config(trusted)?);
    let connection = endpoint.connect(server.parse()?, "localhost")?.await?;
    let port = join_server(&connection, &parse_uuid(uuid)?, password).await?;
    println!("joined, port {port}");
    serve(&endpoint, &connection, local.parse()?).await?;
    connection.close(VarInt::from_u32(0), b"");
    endpoint.wait_idle().await;
    Ok(())
}

fn client_config(trusted: &str) -> Outcome<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"asport".to_vec()];
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)))
}

fn parse_uuid(text: &str) -> Outcome<[u8; 16]> {
    Ok(u128::from_str_radix(&text.replace('-', ""), 16)?.to_be_bytes())
}

/// Sends ClientHello, and returns the public port of the ServerHello.
async fn join_server(connection: &Connection, uuid: &[u8; 16], password: &str) -> Outcome<u16> {
    let mut token = [0; 32];
    connection
        .export_keying_material(&mut token, uuid, password.as_bytes())
        .map_err(|_| "no token could be exported")?;
    let hello = [&[0, 0], &uuid[..], &token, &[MODE_BOTH], &1u16.to_be_bytes(), &u16::MAX.to_be_bytes()].concat();
    let mut stream = connection.open_uni().await?;
    stream.write_all(&hello).await?;
    stream.finish()?;
    let answer = connection.accept_uni().await?.read_to_end(LONGEST_COMMAND).await?;
    match answer[..] {
        [0, 1, 0, high, low] => Ok(u16::from_be_bytes([high, low])),
        _ => Err(format!("not a ServerHello with success: {answer:02x?}").into()),
    }
}

/// Does what server and signals ask for, until SIGTERM or the first fault.
async fn serve(endpoint: &Endpoint, connection: &Connection, local: SocketAddr) -> Outcome<()> {
    let mut migrate = signal(SignalKind::user_defined1())?;
    let mut update_keys = signal(SignalKind::user_defined2())?;
    let mut end = signal(SignalKind::terminate())?;
    let mut ticker = tokio::time::interval(HEARTBEAT_PERIOD);
    // The next packet number of each association.
    let mut numbers: HashMap<[u8; 2], u16> = HashMap::new();
    loop {
        tokio::select! {
            _ = ticker.tick() => connection.send_datagram(HEARTBEAT.to_vec().into())?,
            stream = connection.accept_bi() => {
                let (send, receive) = stream?;
                tokio::spawn(relay(send, receive, local));
            }
            packet = connection.read_datagram() => {
                let mut packet = packet?.to_vec();
                let number = numbers.entry(association_of(&packet)?).or_default();
                packet[4..6].copy_from_slice(&number.to_be_bytes());
                *number = number.wrapping_add(1);
                connection.send_datagram(packet.into())?;
            }
            stream = connection.accept_uni() => {
                let command = stream?.read_to_end(LONGEST_COMMAND).await?;
                if command.len() != 4 || !command.starts_with(&DISSOCIATE) {
                    return Err(format!("not a Dissociate: {command:02x?}").into());
                }
            }
            _ = migrate.recv() => {
                // The old socket is closed: what the server still sends there is lost.
                endpoint.rebind(UdpSocket::bind("127.0.0.1:0")?)?;
                println!("migrated to {}", endpoint.local_addr()?);
            }
            _ = update_keys.recv() => {
                connection.force_key_update();
                println!("keys updated");
            }
            _ = end.recv() => return Ok(()),
        }
    }
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
async fn relay(mut send: SendStream, mut receive: RecvStream, local: SocketAddr) {
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
        let _ = send.reset(code);
        let _ = receive.stop(code);
    }
}

/// Takes a Connect from the beginning of a stream, and not a byte of what follows.
async fn read_connect(receive: &mut RecvStream) -> Outcome<()> {
    let mut begin = [0; 3];
    receive.read_exact(&mut begin).await?;
    if !begin.starts_with(&CONNECT) {
        return Err(format!("not a Connect: {begin:02x?}").into());
    }
    let mut rest = vec![0; address_size(begin[2])? - 1];
    receive.read_exact(&mut rest).await?;
    Ok(())
}

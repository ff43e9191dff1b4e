//! Second ClientHello, requested by the server.

use portcullis_egress::Limits;
use rustls::ClientConnection;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::rustls;

use super::{
    hellos::{client, client_hello},
    support::{Origin, SOON, World, code},
};

const HOST: &str = "tls.example";
const OTHER: &str = "evl.example";

/// Delivers a record to a client.
async fn hear(stream: &mut TcpStream, client: &mut ClientConnection) -> Vec<u8> {
    let mut record = vec![0; 5];
    timeout(SOON, stream.read_exact(&mut record)).await.unwrap().unwrap();
    record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
    timeout(SOON, stream.read_exact(&mut record[5..])).await.unwrap().unwrap();
    client.read_tls(&mut record.as_slice()).unwrap();
    // It trusts no certificate, and so reports an error.
    let _ = client.process_new_packets();
    record
}

fn renamed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = bytes.windows(HOST.len()).position(|part| part == HOST.as_bytes()).expect("a name");
    bytes[at..at + HOST.len()].copy_from_slice(OTHER.as_bytes());
    bytes
}

async fn scene(again: bool) -> (Origin, World) {
    let origin = match again {
        true => Origin::tls_with_hello_retry(HOST).await,
        false => Origin::tls(HOST).await,
    };
    let listed = ["", "tcp://"].map(|scheme| match scheme {
        "" => format!("{HOST}:{}=127.0.0.1", origin.port),
        _ => format!("tcp://other.example:{}=127.0.0.1", origin.port),
    });
    let world = World::new(&listed, Limits::default()).await;
    (origin, world)
}

#[tokio::test]
async fn second_hello_for_the_same_host_passes() {
    let (origin, world) = scene(true).await;
    let mut stream = world.tunnel(HOST, origin.port).await;
    let mut client = client(HOST);
    stream.write_all(&client_hello(&mut client)).await.unwrap();
    let asks = hear(&mut stream, &mut client).await;
    assert_eq!(asks[11..15], [0xcf, 0x21, 0xad, 0x74], "it asks again");
    let second = client_hello(&mut client);
    assert!(second.windows(HOST.len()).any(|part| part == HOST.as_bytes()));
    stream.write_all(&second).await.unwrap();
    // After any intermediate messages, its real answer arrives.
    let answered = async {
        loop {
            let record = hear(&mut stream, &mut client).await;
            if record[0] == 22 {
                return record;
            }
        }
    };
    let answered = timeout(SOON, answered).await.unwrap();
    assert_eq!(answered[5], 2, "a ServerHello");
    assert_ne!(answered[11..15], [0xcf, 0x21, 0xad, 0x74]);
    drop(stream);
    let reported = world.reported().await;
    assert!(!code(&reported).contains('-'), "{reported:?}", reported = reported.end);
}

#[tokio::test]
async fn second_hello_for_another_host_is_refused() {
    let (origin, world) = scene(true).await;
    let mut stream = world.tunnel(HOST, origin.port).await;
    let mut client = client(HOST);
    let first = client_hello(&mut client);
    stream.write_all(&first).await.unwrap();
    hear(&mut stream, &mut client).await;
    stream.write_all(&renamed(&client_hello(&mut client))).await.unwrap();
    let reported = world.reported().await;
    assert_eq!(code(&reported), "other-server-name");
    // At most the messages allowed before it, and nothing of it.
    assert!(
        reported.up <= u64::try_from(first.len() + 6).unwrap(),
        "{} {}",
        reported.up,
        first.len()
    );
}

/// A program that does not wait for the server's request.
#[tokio::test]
async fn immediate_second_hello_waits_and_is_refused() {
    for (again, expected) in [(true, "other-server-name"), (false, "Closed")] {
        let (origin, world) = scene(again).await;
        let mut stream = world.tunnel(HOST, origin.port).await;
        let first = client_hello(&mut client(HOST));
        let both = [first.clone(), vec![20, 3, 3, 0, 1, 1], renamed(&first)].concat();
        stream.write_all(&both).await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap();
        drop(stream);
        let reported = world.reported().await;
        match again {
            true => {
                assert_eq!(code(&reported), expected);
                assert_eq!(reported.up, u64::try_from(first.len() + 6).unwrap());
            }
            // A server that did not request it refuses it itself.
            false => {
                assert!(["Closed", "Broken"].contains(&&*code(&reported)), "{:?}", reported.end)
            }
        }
    }
}

/// Data other than TLS after a ClientHello.
#[tokio::test]
async fn other_data_after_the_hello_is_refused() {
    let (origin, world) = scene(false).await;
    let mut stream = world.tunnel(HOST, origin.port).await;
    let first = client_hello(&mut client(HOST));
    stream.write_all(&[&first[..], b"GET / HTTP/1.1\r\n\r\n"].concat()).await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap();
    let reported = world.reported().await;
    // The server may have answered first, and then handles it.
    assert!(
        ["broken-hello", "Closed", "Broken"].contains(&&*code(&reported)),
        "{:?}",
        reported.end
    );
}

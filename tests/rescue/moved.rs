//! The state that moves with a connection, seen by its handler and its client.

use std::net::SocketAddr;

use tungstenite::Message;

use crate::client::{Raw, ask, connect_with};
use crate::{crash, serve, stop};

#[test]
fn all_data_of_a_connection_moves() {
    let (mut server, _dir) = serve(&["everything", "crash"], &[]);
    let long = format!("/everything?{}", "q".repeat(300));
    for resource in ["/everything?short", long.as_str()] {
        let headers = [
            ("Origin", "https://example.com"),
            ("Sec-WebSocket-Protocol", "chat.v1, chat.v2"),
            ("X-Kept", "as it was"),
        ];
        let (mut client, answer) = connect_with(&server.address(), resource, &headers);
        assert_eq!(answer["Sec-WebSocket-Protocol"], "chat.v2");
        assert_eq!(ask(&mut client, "set_state seven"), "set_state: 0");
        let questions = [
            "resource",
            "path",
            "query",
            "origin",
            "protocol",
            "header X-Kept",
            "headers",
            "authority",
            "method",
            "remote_address",
            "local_address",
            "deflate",
            "state",
            "version",
        ];
        let before: Vec<String> = questions.iter().map(|question| ask(&mut client, question)).collect();
        assert_eq!(ask(&mut client, "is_resumed"), "is_resumed: 0");
        for _ in 0..3 {
            crash(&server, "/crash", "null");
            let after: Vec<String> = questions.iter().map(|question| ask(&mut client, question)).collect();
            assert_eq!(before, after);
            assert_eq!(ask(&mut client, "is_resumed"), "is_resumed: 1");
        }
        let local: SocketAddr = client.get_ref().local_addr().unwrap();
        assert!(before[9].ends_with(&format!("port={} text={}", local.port(), local.ip())), "{}", before[9]);
        assert_eq!(before[3], "origin: \"https://example.com\"");
        assert_eq!(before[5], "header: \"as it was\"");
        assert_eq!(before[12], "state: \"seven\"");
        assert_eq!(ask(&mut client, "set_user after"), "set_user: 0");
        assert_eq!(ask(&mut client, "user"), "user: after");
        client.close(None).unwrap();
        assert_eq!(crate::client::close_of(&mut client).0, 1005);
    }
    stop(&mut server);
}

#[test]
fn tungstenite_finds_nothing_wrong_with_a_connection_that_moves() {
    let (mut server, _dir) = serve(&["echo", "crash"], &["--workers", "2"]);
    let mut clients: Vec<_> = (0..20).map(|_| crate::client::connect(&server.address(), "/echo")).collect();
    for round in 0..6 {
        for (index, client) in clients.iter_mut().enumerate() {
            let size = index * 3001;
            client.send(Message::text(format!("{round} {index} {}", "x".repeat(size)))).unwrap();
            client.send(Message::Ping(vec![index as u8].into())).unwrap();
            client.flush().unwrap();
        }
        crash(&server, "/crash", "null");
        for (index, client) in clients.iter_mut().enumerate() {
            let begin = format!("{round} {index} x");
            let text = crate::client::next_text(client);
            assert!(
                text.starts_with(begin.trim_end_matches('x')) && text.len() >= index * 3001,
                "{round} {index}"
            );
        }
    }
    for client in &mut clients {
        client.close(None).unwrap();
        assert_eq!(crate::client::close_of(client).0, 1005);
    }
    stop(&mut server);
}

#[test]
fn bytes_of_an_incomplete_message_are_not_lost_silently() {
    let (mut server, _dir) = serve(&["echo", "crash"], &[]);
    let mut torn = Raw::open(&server.address(), "/echo");
    let mut fragmented = Raw::open(&server.address(), "/echo");
    let mut unread = Raw::open(&server.address(), "/echo");
    let whole = crate::client::frame(crate::client::TEXT, b"in two halves");
    let part = crate::client::frame(0x01, b"first of ");
    // The answer to a Ping shows that the worker has read what came with it.
    let ping = crate::client::frame(crate::client::PING, b"");
    for (client, bytes) in [(&mut torn, &whole[..9]), (&mut fragmented, &part[..])] {
        client.send(&[&ping, bytes].concat());
        assert_eq!(client.next().unwrap().first, crate::client::PONG);
    }
    assert_eq!(unread.ask("all is well"), "all is well");
    crash(&server, "/crash", "null");
    for client in [&mut torn, &mut fragmented] {
        client.expect_close(1012);
        client.expect_end();
    }
    assert_eq!(unread.ask("still"), "still");
    drop((torn, fragmented, unread));
    stop(&mut server);
}

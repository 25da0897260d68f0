use std::ffi::OsStr;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::*;

const QUEUE: fn(&Listen) -> Binding = |_| Binding { backlog: 16, mode: None, owner: None, group: None };

fn tcp(host: &str, port: u16) -> Listen {
    Listen::Tcp { host: host.to_owned(), port }
}

fn address(listener: &Listener) -> SocketAddr {
    match &listener.address {
        Bound::Tcp(address) => *address,
        Bound::Unix(path) => panic!("{}", path.display()),
    }
}

#[test]
fn what_a_socket_was_bound_for_can_be_told_to_another_process() {
    let path = OsStr::from_bytes(b"/a b\xff\n");
    for listen in [tcp("::1", 0), tcp("a b", 80), Listen::Unix(path.into())] {
        let told = serde_json::to_string(&listen).unwrap();
        assert_eq!(serde_json::from_str::<Listen>(&told).unwrap(), listen);
    }
}

#[test]
fn what_is_listened_on_already_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| Listen::Unix(dir.path().join(name)));
    let first = bind_missing(&[one.clone(), tcp("127.0.0.1", 0)], &QUEUE, &[]).unwrap();
    let second = bind_missing(&[two, tcp("127.0.0.1", 0)], &QUEUE, &first).unwrap();
    let addresses: Vec<&Bound> = second.iter().map(|listener| &listener.address).collect();
    assert_eq!(addresses, [&first[1].address, &Bound::Unix(dir.path().join("two"))]);
    assert!(bind_missing(&[one], &QUEUE, &[]).is_err(), "it is still listened on");
}

#[test]
fn port_0_listens_on_a_port_that_is_told() {
    let listeners = bind(&[tcp("127.0.0.1", 0)], &QUEUE).unwrap();
    let [listener] = &listeners[..] else { panic!("{listeners:?}") };
    assert_ne!(address(listener).port(), 0);
    TcpStream::connect(address(listener)).unwrap();
    assert_eq!(listener.address.to_string(), format!("127.0.0.1:{}", address(listener).port()));
}

#[test]
fn sockets_do_not_block_and_do_not_survive_exec() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    for listener in bind(&[tcp("127.0.0.1", 0), Listen::Unix(path)], &QUEUE).unwrap() {
        let flags = OFlag::from_bits_retain(fcntl(&listener, FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_NONBLOCK));
        let flags = FdFlag::from_bits_retain(fcntl(&listener, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
    }
}

#[test]
fn ipv6_leaves_ipv4_alone_and_is_printed_in_brackets() {
    let Ok(v6) = bind(&[tcp("::", 0)], &QUEUE) else { return }; // a machine without IPv6
    let port = address(&v6[0]).port();
    assert_eq!(v6[0].address.to_string(), format!("[::]:{port}"));
    TcpStream::connect(("::1", port)).unwrap();
    drop(v6);
    // The port may be another test's on IPv4.
    let both = (0..100).find_map(|_| {
        let v6 = bind(&[tcp("::", 0)], &QUEUE).unwrap();
        let port = address(&v6[0]).port();
        let is_refused = TcpStream::connect(("127.0.0.1", port)).is_err();
        is_refused.then(|| bind(&[tcp("0.0.0.0", port)], &QUEUE).ok())?.map(|v4| (v6, v4))
    });
    let (v6, v4) = both.unwrap();
    assert_eq!(v4[0].address.to_string(), format!("0.0.0.0:{}", address(&v6[0]).port()));
}

#[test]
fn a_name_stands_for_all_its_addresses_and_a_picked_port_for_all_hosts() {
    let listeners = bind(&[tcp("localhost", 0), tcp("127.0.0.2", 0)], &QUEUE).unwrap();
    assert!(listeners.len() >= 2);
    let port = address(&listeners[0]).port();
    assert!(listeners.iter().all(|listener| address(listener).port() == port), "{listeners:?}");
    assert!(listeners.iter().all(|listener| address(listener).ip().is_loopback()), "{listeners:?}");
}

#[test]
fn an_address_in_use_is_named() {
    let first = bind(&[tcp("127.0.0.1", 0)], &QUEUE).unwrap();
    let port = address(&first[0]).port();
    let error = bind(&[tcp("127.0.0.1", port)], &QUEUE).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}: ")), "{error}");
}

#[test]
fn a_failure_takes_back_what_was_bound_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    assert!(bind(&[Listen::Unix(path.clone()), tcp("256.0.0.1", 1)], &QUEUE).is_err());
    assert!(!path.exists());
}

#[test]
fn a_socket_that_is_passed_does_not_block_and_goes_on_alone() {
    let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = passed.local_addr().unwrap();
    let listener = Arc::new(adopt(passed.into(), "x").unwrap());
    assert_eq!(address(&listener), at);
    let flags = OFlag::from_bits_retain(fcntl(&*listener, FcntlArg::F_GETFL).unwrap());
    assert!(flags.contains(OFlag::O_NONBLOCK));
    let all = adopted_or_bound(&[tcp("127.0.0.1", 0)], &QUEUE, &[listener]).unwrap();
    assert_eq!(all.iter().map(|listener| address(listener)).collect::<Vec<_>>(), [at]);
}

#[test]
fn nothing_is_paced_that_never_leaves_the_machine() {
    let congestion = |socket: SockRef| {
        let name = String::from_utf8(socket.tcp_congestion().unwrap()).unwrap();
        name.trim_end_matches('\0').to_owned()
    };
    let usual = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let accepted = |host| {
        let listener = bind(&[tcp(host, 0)], &QUEUE).unwrap().remove(0);
        let _client = TcpStream::connect(("127.0.0.1", address(&listener).port())).unwrap();
        congestion(SockRef::from(&SockRef::from(&listener).accept().unwrap().0))
    };
    assert!(!accepted("127.0.0.1").starts_with("bbr"));
    assert_eq!(accepted("0.0.0.0"), congestion(SockRef::from(&usual)), "peers elsewhere");
    // Where the system's is another, or there is no BBR at all.
    let before = congestion(SockRef::from(&usual));
    let after = usual.set_tcp_congestion(b"bbr").map_or(before, |()| "reno".to_owned());
    unpace(&usual);
    assert_eq!(congestion(SockRef::from(&usual)), after);
}

#[test]
fn a_socket_that_was_shut_down_refuses_and_its_port_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let both = bind(&[tcp("127.0.0.1", 0), Listen::Unix(path.clone())], &QUEUE).unwrap();
    let at = address(&both[0]);
    let copies: Vec<OwnedFd> = both.iter().map(|listener| listener.fd.try_clone().unwrap()).collect();
    let _connected = TcpStream::connect(at).unwrap();
    both.iter().for_each(Listener::shut_down);
    assert_eq!(TcpStream::connect(at).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    bind(&[tcp("127.0.0.1", at.port()), Listen::Unix(path)], &QUEUE).unwrap();
    for listener in &both {
        let accepted = SockRef::from(&listener.fd).accept().unwrap_err();
        assert!(matches!(accepted.raw_os_error(), Some(libc::EINVAL | libc::EAGAIN)), "{accepted}");
    }
    drop(copies);
    let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let adopted = adopt(passed.into(), "x").unwrap();
    adopted.shut_down();
    TcpStream::connect(address(&adopted)).unwrap();
}

#[test]
fn what_is_accepted_is_sent_without_delay_however_the_socket_came() {
    let bound = || bind(&[tcp("127.0.0.1", 0)], &QUEUE).unwrap().remove(0);
    let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_over = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_over = Listener::inherited(taken_over.into(), tcp("127.0.0.1", 0)).unwrap();
    for listener in [bound(), adopt(passed.into(), "x").unwrap(), taken_over] {
        let _client = TcpStream::connect(address(&listener)).unwrap();
        let (accepted, _) = SockRef::from(&listener).accept().unwrap();
        assert!(accepted.tcp_nodelay().unwrap(), "{listener:?}");
    }
}

#[test]
fn an_abstract_name_is_told_with_an_at() {
    let name = format!("wshd-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let listener = adopt(UnixListener::bind_addr(&address).unwrap().into(), "x").unwrap();
    assert_eq!(listener.address.to_string(), format!("unix:@{name}"));
    listener.remove_file();
}

#[test]
fn a_stale_unix_socket_is_replaced_and_removed_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    // Bound, and not listening: nobody answers, whatever children other tests fork meanwhile.
    let stale = Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    stale.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    drop(stale);
    assert!(path.exists());
    let listeners = bind(&[Listen::Unix(path.clone())], &QUEUE).unwrap();
    UnixStream::connect(&path).unwrap();
    assert_eq!(listeners[0].address.to_string(), format!("unix:{}", path.display()));
    listeners[0].remove_file();
    assert!(!path.exists());
}

#[test]
fn a_unix_socket_that_answers_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _other = UnixListener::bind(&path).unwrap();
    let error = bind(&[Listen::Unix(path.clone())], &QUEUE).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_server_that_does_not_accept_is_one_and_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    busy.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    busy.listen(0).unwrap();
    let mut waiting = Vec::new();
    while let Ok(()) = connect(&path).inspect(|()| waiting.push(())) {}
    let error = bind(&[Listen::Unix(path.clone())], &QUEUE).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "precious").unwrap();
    let error = bind(&[Listen::Unix(path.clone())], &QUEUE).unwrap_err();
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn the_socket_of_a_successor_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listeners = bind(&[Listen::Unix(path.clone())], &QUEUE).unwrap();
    std::fs::rename(&path, dir.path().join("old")).unwrap(); // its inode stays taken
    let _successor = UnixListener::bind(&path).unwrap();
    listeners[0].remove_file();
    assert!(path.exists());
}

#[test]
fn an_unspecified_address_is_reached_through_loopback() {
    let reached = |text: &str| Bound::Tcp(text.parse().unwrap()).local_authority().unwrap().to_string();
    assert_eq!(reached("0.0.0.0:80"), "127.0.0.1:80");
    assert_eq!(reached("[::]:80"), "[::1]:80");
    assert_eq!(reached("192.0.2.1:80"), "192.0.2.1:80");
}

#[test]
fn a_socket_in_the_file_system_has_the_mode_and_group_that_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let group = nix::unistd::getegid();
    let how = |_: &Listen| Binding { backlog: 1, mode: Some(0o620), owner: None, group: Some(group) };
    let _listeners = bind(&[Listen::Unix(path.clone())], &how).unwrap();
    let file = path.metadata().unwrap();
    assert_eq!((file.permissions().mode() & 0o777, file.gid()), (0o620, group.as_raw()));
}

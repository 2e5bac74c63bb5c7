//! TCP_CONGESTION of Linux; elsewhere there is nothing to choose from.

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use std::io;
    use std::net::TcpStream;

    use rustix::net::sockopt;
    use socket2::{Domain, Protocol, Socket, Type};

    /// Where the kernel names what it has loaded, and what it lets everybody have.
    const LISTS: [&str; 2] = [
        "/proc/sys/net/ipv4/tcp_allowed_congestion_control",
        "/proc/sys/net/ipv4/tcp_available_congestion_control",
    ];

    pub(crate) fn set(stream: &TcpStream, name: &str) -> io::Result<()> {
        Ok(sockopt::set_tcp_congestion(stream, name)?)
    }

    pub(crate) fn name(stream: &TcpStream) -> Option<String> {
        sockopt::tcp_congestion(stream).ok()
    }

    fn unconnected() -> io::Result<Socket> {
        Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
            .or_else(|_| Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)))
    }

    pub(crate) fn by_default() -> Option<String> {
        sockopt::tcp_congestion(unconnected().ok()?).ok()
    }

    pub(crate) fn can_have(name: &str) -> bool {
        unconnected().is_ok_and(|socket| {
            sockopt::set_tcp_congestion(&socket, name).is_ok()
                && sockopt::tcp_congestion(&socket).is_ok_and(|now| now == name)
        })
    }

    pub(crate) fn on_offer() -> Vec<String> {
        let lists = LISTS.map(|path| std::fs::read_to_string(path).unwrap_or_default());
        let mut names: Vec<String> =
            lists.iter().flat_map(|list| list.split_whitespace()).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names.retain(|name| can_have(name));
        names
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    use std::io;
    use std::net::TcpStream;

    pub(crate) fn set(_stream: &TcpStream, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn name(_stream: &TcpStream) -> Option<String> {
        None
    }

    pub(crate) fn by_default() -> Option<String> {
        None
    }

    pub(crate) fn can_have(_name: &str) -> bool {
        false
    }

    pub(crate) fn on_offer() -> Vec<String> {
        Vec::new()
    }
}

/// What the system has this connection use.
pub(super) use system::name as congestion_of;
/// Asks the system to have this connection use what is called so.
pub(super) use system::set as set_congestion;

/// What the system uses where nothing is asked for.
pub(crate) use system::by_default as congestion_by_default;
/// Whether the system lets this process have the congestion control of that name.
pub(crate) use system::can_have as try_congestion;
/// The names that the system lets this process have.
pub(crate) use system::on_offer as congestion_on_offer;

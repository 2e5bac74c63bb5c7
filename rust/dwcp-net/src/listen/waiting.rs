//! The places of connections that have not shown who they are: bounded, so that strangers cannot take them all.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use crate::cancel::lock;
use crate::security::network_of;
use crate::transport::Closer;

/// Places altogether, for one network, and for one from which somebody was let in: sessions on long paths add dozens of
/// lanes at a time.
const MAX_WAITING: usize = 64;
const MAX_WAITING_OF_ONE: usize = 16;
const MAX_WAITING_OF_KNOWN: usize = 48;

/// All places.
#[derive(Debug, Default)]
pub(super) struct WaitingRoom(Mutex<Room>);

#[derive(Debug, Default)]
struct Room {
    next: u64,
    /// By network, the oldest first.
    guests: HashMap<IpAddr, Vec<Guest>>,
    /// How many connections of a network were let in and are there.
    known: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Guest {
    id: u64,
    /// To send it away when others need the place; none when it has to stay.
    closer: Option<Closer>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<WaitingRoom>,
    network: IpAddr,
    id: u64,
}

/// A connection that was let in, until it is dropped.
#[derive(Debug)]
pub(super) struct LetIn {
    room: Arc<WaitingRoom>,
    network: IpAddr,
}

impl WaitingRoom {
    /// Gives a connection a place. When all are taken, the oldest connection of the network that has the most, if that
    /// is more than this one has, is sent away for it.
    pub(super) fn enter(room: &Arc<WaitingRoom>, closer: Option<Closer>, peer: SocketAddr) -> Option<Place> {
        let network = network_of(peer.ip());
        let mut inner = lock(&room.0);
        let of_one = inner.guests.get(&network).map_or(0, Vec::len);
        let total: usize = inner.guests.values().map(Vec::len).sum();
        let most = if inner.known.contains_key(&network) { MAX_WAITING_OF_KNOWN } else { MAX_WAITING_OF_ONE };
        if of_one >= most || (total >= MAX_WAITING && !inner.send_one_away(of_one)) {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        inner.guests.entry(network).or_default().push(Guest { id, closer });
        Some(Place { room: Arc::clone(room), network, id })
    }
}

impl Room {
    fn send_one_away(&mut self, fewest: usize) -> bool {
        let crowd = self
            .guests
            .iter_mut()
            .filter(|(_, guests)| guests.len() > fewest && guests.iter().any(|guest| guest.closer.is_some()))
            .max_by_key(|(_, guests)| guests.len());
        let Some((&network, guests)) = crowd else { return false };
        let most = guests.len();
        let Some(index) = guests.iter().position(|guest| guest.closer.is_some()) else { return false };
        if let Some(closer) = guests.remove(index).closer {
            log::warn!(
                "{network} has made room for others: {most} of its connections have not said who they are"
            );
            closer.close();
        }
        if guests.is_empty() {
            self.guests.remove(&network);
        }
        true
    }

    fn of(&mut self, place: &Place) -> Option<(&mut Vec<Guest>, usize)> {
        let guests = self.guests.get_mut(&place.network)?;
        let index = guests.iter().position(|guest| guest.id == place.id)?;
        Some((guests, index))
    }
}

impl Place {
    /// Keeps the place until it is dropped, whoever needs it: a guess costs the guesser its place for that long.
    pub(super) fn detain(&self) {
        if let Some((guests, index)) = lock(&self.room.0).of(self) {
            guests[index].closer = None;
        }
    }

    /// Gives the place back, since the connection has shown who it is.
    pub(super) fn let_in(self) -> LetIn {
        let (room, network) = (Arc::clone(&self.room), self.network);
        *lock(&room.0).known.entry(network).or_default() += 1;
        LetIn { room, network }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut room = lock(&self.room.0);
        if let Some((guests, index)) = room.of(self) {
            guests.remove(index);
            if guests.is_empty() {
                room.guests.remove(&self.network);
            }
        }
    }
}

impl Drop for LetIn {
    fn drop(&mut self) {
        let mut room = lock(&self.room.0);
        if let Some(count) = room.known.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                room.known.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn nothing_is_kept_of_networks_whose_connections_were_sent_away() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let closer = Closer::new(stream);
        let room = Arc::new(WaitingRoom::default());
        // Each from a network of its own, so that a crowd is one connection.
        let enter = |network: usize, room| {
            let peer = SocketAddr::from((Ipv4Addr::from(network as u32), 9));
            WaitingRoom::enter(room, Some(closer.clone()), peer).unwrap()
        };
        let places: Vec<Place> = (1..=3 * MAX_WAITING).map(|network| enter(network, &room)).collect();
        assert_eq!(lock(&room.0).guests.len(), MAX_WAITING);
        drop(places);
        assert!(lock(&room.0).guests.is_empty());
    }

    #[test]
    fn a_network_has_more_places_while_somebody_of_it_is_let_in() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let closer = Closer::new(stream);
        let room = Arc::new(WaitingRoom::default());
        let enter = |last: u8| {
            WaitingRoom::enter(&room, Some(closer.clone()), SocketAddr::from(([192, 0, 2, last], 9)))
        };
        let fill = |last: u8| std::iter::from_fn(|| enter(last)).collect::<Vec<_>>().len();
        assert_eq!(fill(1), MAX_WAITING_OF_ONE);
        let known = enter(1).map(Place::let_in);
        assert_eq!((fill(1), fill(2)), (MAX_WAITING_OF_KNOWN, MAX_WAITING_OF_ONE));
        drop(known);
        assert_eq!(fill(1), MAX_WAITING_OF_ONE);
        assert!(lock(&room.0).known.is_empty() && lock(&room.0).guests.is_empty());
    }
}

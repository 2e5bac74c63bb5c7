//! The threads of lanes: each makes its lane, has it work, and makes it again when it was lost.

use std::sync::MutexGuard;

use dwcp_proto::frame::ErrorCode;

use super::shared::{Link, Shared, State};
use super::worker::work;
use crate::cancel::{CANCEL_SLICE, lock, wait};
use crate::dial::{Dialled, Hailed, Plan, backoff, hail_lane, open_lane};
use crate::error::{NetError, plain};
use crate::report::Event;
use crate::transport::{LinkKind, WakeReceiver, Waker, wake_pair};

/// Runs lane `number` until the session is closed.
pub(super) fn run(shared: &Shared, plan: &Plan, number: u16, first: Option<Dialled>) {
    let mut ready = first.map(|dialled| (Made::Dialled(dialled), 0));
    let mut attempts = 0;
    while let Some((made, epoch)) = ready.take().or_else(|| make_lane(shared, plan, number, &mut attempts)) {
        let (waker, wake) = match wake_pair() {
            Ok(pair) => pair,
            Err(error) => {
                log::debug!("lane {number} could not start: {error}");
                return;
            }
        };
        match live(shared, made, (number, epoch), (waker, wake)) {
            Ok(true) => attempts = 0,
            Ok(false) => {
                attempts += 1;
                if shared.cancel.sleep(backoff(attempts)).is_err() {
                    return;
                }
            }
            Err(refusal) => {
                plan.note_refusal(&refusal);
                if cope(shared, lock(&shared.state), refusal, (epoch, true), &mut attempts).is_none() {
                    return;
                }
            }
        }
    }
}

/// A lane that has begun.
enum Made {
    Dialled(Dialled),
    Hailed(Hailed),
}

/// Makes a lane once there is work; none when the session is closed, or this lane is not wanted any more.
fn make_lane(shared: &Shared, plan: &Plan, number: u16, attempts: &mut u32) -> Option<(Made, u64)> {
    loop {
        let (epoch, link) = await_need(shared, number)?;
        let join = link.as_ref().map(|link| (link.id, link.key));
        let halts = (&shared.cancel, &shared.halt);
        // Where no other lane is there, the session itself may not be any more.
        let joins_others = plan.trusts_peer() && lock(&shared.state).has_lanes();
        let made = match join.filter(|_| joins_others) {
            Some(join) => hail_lane(plan, number, join, halts).map(Made::Hailed),
            None => open_lane(plan, number, join, halts).map(Made::Dialled),
        };
        let mut state = lock(&shared.state);
        if link.is_none() {
            state.opening = false;
            shared.changed.notify_all();
        }
        let error = match made {
            Ok(made) => {
                if let (None, Made::Dialled(dialled)) = (&link, &made) {
                    state.open(&dialled.welcome);
                    let opened = state.epoch;
                    drop(state);
                    let peer = dialled.lane.transport().peer_addr();
                    shared.observer.event(Event::SessionOpened { peer });
                    return Some((made, opened));
                }
                return Some((made, epoch));
            }
            Err(error) => error,
        };
        cope(shared, state, error, (epoch, link.is_some()), attempts)?;
    }
}

/// Does what follows from `error`, for which a lane could not be made that was to join the session of an epoch or to
/// open one. None when the session is closed, or waiting for another attempt was in vain.
fn cope(
    shared: &Shared,
    mut state: MutexGuard<'_, State>,
    error: NetError,
    (epoch, joining): (u64, bool),
    attempts: &mut u32,
) -> Option<()> {
    let alone = state.epoch == epoch && state.lanes.is_empty();
    match &error {
        // The receiver does not know the session any more: a new one is opened.
        NetError::Peer { code: ErrorCode::Auth, .. } if joining && alone => {
            state.renew(None);
            return Some(());
        }
        NetError::Peer { code: ErrorCode::Auth, message, .. } if !joining => {
            let reason = format!("the peer reports: {}", plain(message));
            state.fail(NetError::Auth { reason });
        }
        // The receiver still counts lanes that are lost, and will notice.
        NetError::Peer { code: ErrorCode::Limit, .. } if joining => {
            return attempt_later(shared, state, error, attempts);
        }
        NetError::Auth { .. } | NetError::Version { .. } | NetError::Peer { retryable: false, .. }
            if alone =>
        {
            state.fail(error);
        }
        _ => return attempt_later(shared, state, error, attempts),
    }
    drop(state);
    shared.changed.notify_all();
    Some(())
}

/// Waits before the next attempt to make a lane, after `error`; none when the session is closed meanwhile.
fn attempt_later(
    shared: &Shared,
    mut state: MutexGuard<'_, State>,
    error: NetError,
    attempts: &mut u32,
) -> Option<()> {
    let reason = error.to_string();
    state.last_failure = Some(error);
    drop(state);
    *attempts += 1;
    let after = backoff(*attempts);
    shared.observer.event(Event::Reconnecting { attempt: *attempts, after, reason });
    shared.cancel.sleep(after).ok()
}

/// Waits until a lane is needed. Tells the epoch and the session to join, or that this lane is to open one.
fn await_need(shared: &Shared, number: u16) -> Option<(u64, Option<Link>)> {
    let mut state = lock(&shared.state);
    loop {
        if state.closing || shared.cancel.is_cancelled() || number >= state.wanted {
            return None;
        }
        if state.needs_lane(number) {
            match &state.link {
                Some(link) if number < link.max_lanes => return Some((state.epoch, Some(link.clone()))),
                Some(_) => {}
                None if !state.opening => {
                    state.opening = true;
                    return Some((state.epoch, None));
                }
                None => {}
            }
        }
        state = wait(&shared.changed, state, CANCEL_SLICE * 4);
    }
}

/// Takes a lane that was made into the session, and works on it. Tells whether it was worth making, or what kept it out.
fn live(
    shared: &Shared,
    made: Made,
    (number, epoch): (u16, u64),
    (waker, wake): (Waker, WakeReceiver),
) -> Result<bool, NetError> {
    let (mut lane, round_trip, passed_over, greeting) = match made {
        Made::Dialled(Dialled { lane, round_trip, passed_over, .. }) => (lane, round_trip, passed_over, None),
        Made::Hailed(Hailed { lane, greeting, round_trip, passed_over }) => {
            (lane, round_trip, passed_over, Some(greeting))
        }
    };
    let link = lane.transport().kind();
    let id = {
        let mut state = lock(&shared.state);
        if state.epoch != epoch {
            drop(state);
            lane.close();
            return Ok(true);
        }
        state.carried_by = (link, passed_over);
        if link == LinkKind::Tcp {
            state.round_trip = Some(state.round_trip.map_or(round_trip, |known| known.min(round_trip)));
        }
        state.attach(number, waker, lane.closer())
    };
    work(shared, lane, (id, epoch), wake, greeting)
}

//! What the way to a receiver is like, seen by sending it bytes that it drops.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_proto::frame::{FEATURE_FILL, Frame, Secret, SessionId};
use dwcp_proto::limits::{MAX_FILL, MIN_BLOCK};

use super::check_lanes;
use super::telemetry::{Telemetry, look};
use crate::cancel::{Cancel, lock};
use crate::dial::{DialOptions, Plan, first_failure, open_lane};
use crate::error::NetError;
use crate::lane::Lane;
use crate::report::{LinkCounts, PathReport, Unobserved};
use crate::security::DialSecurity;
use crate::transport::LinkKind;

/// How long one lane sends little, to see round trips that wait for nothing, and how often.
const CALM: Duration = Duration::from_millis(800);
const STEP: Duration = Duration::from_millis(50);
/// Some segments, since TCP takes its time to acknowledge a single one.
const LITTLE: u32 = 4_096;
/// How often to look while all lanes send as much as they can.
const LOOK: Duration = Duration::from_millis(100);
/// A receiver that takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to probe.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Connections to send on, as far as the receiver allows.
    pub lanes: u16,
    /// For how long to send as much as passes.
    pub burst_for: Duration,
    /// How much to send in that time at most.
    pub burst_bytes: u64,
    /// How long TCP, and then TLS and the greeting, may take.
    pub connect_timeout: Duration,
    /// Addresses of this machine that lanes come from, as [`crate::SendOptions::local_addresses`].
    pub local_addresses: Vec<IpAddr>,
    /// What may carry the lanes, as [`crate::SendOptions::links`].
    pub links: Vec<LinkKind>,
}

/// What a probe has seen.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// The receiver.
    pub peer: SocketAddr,
    /// Connections that were there.
    pub lanes: u16,
    /// What carries them.
    pub link: LinkKind,
    /// What was tried before that, and why it does not.
    pub passed_over: Option<String>,
    /// How long the handshake of TCP took, or making the connection otherwise.
    pub handshake: Duration,
    /// Something near answers for the receiver: then TCP tells nothing of the way to it.
    pub is_relayed: bool,
    /// What TCP has shown while little was sent; none where the system or the receiver knows of nothing like it.
    pub calm: Option<PathReport>,
    /// The same while as much was sent as passed.
    pub burst: Option<PathReport>,
    /// What was counted in that time, and when, in seconds since its beginning.
    pub counts: Vec<(f64, LinkCounts)>,
}

/// Looks at the way to the receiver at `address` (`HOST:PORT`). It gets bytes that it drops, and keeps nothing.
///
/// # Errors
/// [`NetError`] if it cannot be reached or does not let this side in, or is lost meanwhile.
pub fn probe(
    address: &str,
    security: &DialSecurity,
    options: &ProbeOptions,
    cancel: &Cancel,
) -> Result<ProbeReport, NetError> {
    check_lanes(options.lanes, None)?;
    let dialling = DialOptions {
        idle_timeout: PATIENCE,
        connect_timeout: options.connect_timeout,
        socket_buffer_bytes: None,
        max_block: MIN_BLOCK,
        fetches: None,
        dictionaries: false,
        fills: true,
        relays: false,
        local_addresses: options.local_addresses.clone(),
        links: options.links.clone(),
    };
    let plan = Plan::new(address, security, dialling, Arc::new(Unobserved))?;
    // Whoever cancels is not kept waiting by a receiver that takes nothing.
    let halt = cancel.child();
    let first = open_lane(&plan, 0, None, (cancel, &halt)).map_err(|error| first_failure(error, cancel))?;
    let mut report = ProbeReport {
        peer: first.lane.transport().peer_addr(),
        lanes: 1,
        link: first.link(),
        passed_over: first.passed_over.clone(),
        handshake: first.round_trip,
        is_relayed: first.is_relayed(),
        calm: None,
        burst: None,
        counts: Vec::new(),
    };
    let welcome = first.welcome;
    let mut lanes = vec![first.lane];
    let seen = if welcome.features & FEATURE_FILL == 0 {
        Ok(())
    } else {
        let most = options.lanes.min(welcome.max_lanes);
        send_little(&mut lanes[0], cancel).and_then(|path| {
            report.calm = path;
            lanes.extend(more_lanes(&plan, most, (welcome.session, welcome.join_key), (cancel, &halt)));
            report.lanes = lanes.len() as u16;
            send_much(&mut lanes, options, cancel, &mut report)
        })
    };
    std::thread::scope(|scope| {
        for lane in &mut lanes {
            scope.spawn(|| lane.close());
        }
    });
    seen.map(|()| report)
}

/// Sends little on one lane.
fn send_little(lane: &mut Lane, cancel: &Cancel) -> Result<Option<PathReport>, NetError> {
    let mut telemetry = Telemetry::default();
    telemetry.begin();
    telemetry.watch(0, lane.closer());
    let end = Instant::now() + CALM;
    while Instant::now() < end {
        lane.send(&Frame::Fill(LITTLE))?;
        cancel.sleep(STEP)?;
        see(&mut telemetry);
    }
    Ok(telemetry.report())
}

/// Makes lanes besides the first; one that cannot be made is done without.
fn more_lanes(plan: &Plan, most: u16, join: (SessionId, Secret), halts: (&Cancel, &Cancel)) -> Vec<Lane> {
    let made = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 1..most {
            let made = &made;
            scope.spawn(move || match open_lane(plan, number, Some(join), halts) {
                Ok(dialled) => lock(made).push(dialled.lane),
                Err(error) => log::debug!("lane {number} cannot be made: {error}"),
            });
        }
    });
    made.into_inner().unwrap_or_default()
}

/// Sends on all lanes what passes.
fn send_much(
    lanes: &mut [Lane],
    options: &ProbeOptions,
    cancel: &Cancel,
    report: &mut ProbeReport,
) -> Result<(), NetError> {
    let mut telemetry = Telemetry::default();
    for (number, lane) in lanes.iter().enumerate() {
        telemetry.watch(number as u32, lane.closer());
    }
    telemetry.begin();
    let (enough, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (began, counts) = (Instant::now(), &mut report.counts);
    let ended = std::thread::scope(|scope| {
        let workers: Vec<_> = lanes
            .iter_mut()
            .map(|lane| {
                scope.spawn(|| {
                    while !enough.load(Ordering::Relaxed) {
                        // Taken before it is sent: all lanes together keep to what is allowed.
                        let before = sent.fetch_add(MAX_FILL as u64, Ordering::Relaxed);
                        let left = options.burst_bytes.saturating_sub(before).min(MAX_FILL as u64);
                        if left < MAX_FILL as u64 {
                            enough.store(true, Ordering::Relaxed);
                        }
                        if left > 0 {
                            lane.send(&Frame::Fill(left as u32))?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        while !enough.load(Ordering::Relaxed) && began.elapsed() < options.burst_for {
            if cancel.sleep(LOOK).is_err() || workers.iter().all(|worker| worker.is_finished()) {
                break;
            }
            see(&mut telemetry);
            counts.extend(telemetry.now().map(|path| (began.elapsed().as_secs_f64(), path.link)));
        }
        enough.store(true, Ordering::Relaxed);
        let ended: Vec<Result<(), NetError>> =
            workers.into_iter().filter_map(|worker| worker.join().ok()).collect();
        ended
    });
    cancel.check()?;
    see(&mut telemetry);
    counts.extend(telemetry.now().map(|path| (began.elapsed().as_secs_f64(), path.link)));
    // A lane that was lost has not carried what it could, but the others may tell enough.
    match ended.into_iter().collect::<Result<Vec<()>, _>>() {
        Err(error) if counts.is_empty() => Err(error),
        _ => {
            report.burst = telemetry.report();
            Ok(())
        }
    }
}

fn see(telemetry: &mut Telemetry) {
    let lanes = telemetry.all();
    telemetry.take(look(&lanes), |_| false, Instant::now());
}

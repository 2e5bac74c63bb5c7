//! As much of `libibverbs` and `librdmacm` as a connection needs, opened at run time.
//!
//! The layouts are those of the stable interface of rdma-core (IBVERBS_1.1 and RDMACM_1.0), which has not changed since
//! 2006 in what is used here; a test holds their sizes and offsets. Sending, receiving and polling are inline functions of
//! the C headers, which go through a table in the context of the device; so do the three here.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use crate::error::RdmaError;

pub(crate) const QPT_RC: c_uint = 2;
pub(crate) const WR_SEND_WITH_IMM: c_uint = 3;
pub(crate) const SEND_SIGNALED: c_uint = 2;
pub(crate) const SEND_INLINE: c_uint = 8;
pub(crate) const ACCESS_LOCAL_WRITE: c_int = 1;
pub(crate) const WC_RECV: c_uint = 128;
pub(crate) const WC_WITH_IMM: c_uint = 2;
pub(crate) const PS_TCP: c_int = 0x106;
pub(crate) const OPTION_ID: c_int = 0;
pub(crate) const OPTION_ID_ACK_TIMEOUT: c_int = 3;

/// Something of the libraries that is only pointed to.
#[repr(C)]
pub(crate) struct Opaque([u8; 0]);

#[repr(C)]
pub(crate) struct ContextOps {
    before: [*mut c_void; 11],
    pub(crate) poll_cq: Option<unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int>,
    pub(crate) req_notify_cq: Option<unsafe extern "C" fn(*mut Cq, c_int) -> c_int>,
    between: [*mut c_void; 12],
    pub(crate) post_send: Option<unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int>,
    pub(crate) post_recv: Option<unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int>,
    after: [*mut c_void; 5],
}

/// The beginning of `ibv_context`.
#[repr(C)]
pub(crate) struct Context {
    device: *mut Opaque,
    pub(crate) ops: ContextOps,
}

/// The beginning of `ibv_qp`.
#[repr(C)]
pub(crate) struct Qp {
    pub(crate) context: *mut Context,
}

/// The beginning of `ibv_cq`.
#[repr(C)]
pub(crate) struct Cq {
    pub(crate) context: *mut Context,
}

#[repr(C)]
pub(crate) struct Mr {
    context: *mut Context,
    pd: *mut Opaque,
    addr: *mut c_void,
    length: usize,
    handle: u32,
    pub(crate) lkey: u32,
    rkey: u32,
}

#[repr(C)]
pub(crate) struct CompChannel {
    context: *mut Context,
    pub(crate) fd: c_int,
    refcnt: c_int,
}

#[repr(C)]
pub(crate) struct DeviceAttr {
    fw_ver: [u8; 64],
    guids: [u64; 2],
    pub(crate) max_mr_size: u64,
    page_size_cap: u64,
    ids: [u32; 3],
    pub(crate) max_qp: c_int,
    pub(crate) max_qp_wr: c_int,
    device_cap_flags: c_uint,
    pub(crate) max_sge: c_int,
    max_sge_rd: c_int,
    pub(crate) max_cq: c_int,
    pub(crate) max_cqe: c_int,
    pub(crate) max_mr: c_int,
    rest: [u32; 23],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct QpCap {
    pub(crate) max_send_wr: u32,
    pub(crate) max_recv_wr: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    pub(crate) max_inline_data: u32,
}

#[repr(C)]
pub(crate) struct QpInitAttr {
    pub(crate) qp_context: *mut c_void,
    pub(crate) send_cq: *mut Cq,
    pub(crate) recv_cq: *mut Cq,
    pub(crate) srq: *mut c_void,
    pub(crate) cap: QpCap,
    pub(crate) qp_type: c_uint,
    pub(crate) sq_sig_all: c_int,
}

#[repr(C)]
pub(crate) struct Sge {
    pub(crate) addr: u64,
    pub(crate) length: u32,
    pub(crate) lkey: u32,
}

#[repr(C)]
pub(crate) struct SendWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut SendWr,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
    pub(crate) opcode: c_uint,
    pub(crate) send_flags: c_uint,
    /// In the order of the network.
    pub(crate) imm_data: [u8; 4],
    pub(crate) rest: [u64; 11],
}

#[repr(C)]
pub(crate) struct RecvWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut RecvWr,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wc {
    pub(crate) wr_id: u64,
    pub(crate) status: c_uint,
    pub(crate) opcode: c_uint,
    pub(crate) vendor_err: u32,
    pub(crate) byte_len: u32,
    /// In the order of the network.
    pub(crate) imm_data: [u8; 4],
    pub(crate) qp_num: u32,
    pub(crate) src_qp: u32,
    pub(crate) wc_flags: c_uint,
    pub(crate) rest: [u16; 4],
}

/// The beginning of `rdma_cm_id`.
#[repr(C)]
pub(crate) struct CmId {
    pub(crate) verbs: *mut Context,
    channel: *mut EventChannel,
    context: *mut c_void,
    pub(crate) qp: *mut Qp,
    pub(crate) source: libc::sockaddr_storage,
    pub(crate) target: libc::sockaddr_storage,
}

#[repr(C)]
pub(crate) struct EventChannel {
    pub(crate) fd: c_int,
}

#[repr(C)]
pub(crate) struct ConnParam {
    pub(crate) private_data: *const c_void,
    pub(crate) private_data_len: u8,
    pub(crate) responder_resources: u8,
    pub(crate) initiator_depth: u8,
    pub(crate) flow_control: u8,
    pub(crate) retry_count: u8,
    pub(crate) rnr_retry_count: u8,
    pub(crate) srq: u8,
    pub(crate) qp_num: u32,
}

#[repr(C)]
pub(crate) struct CmEvent {
    pub(crate) id: *mut CmId,
    pub(crate) listen_id: *mut CmId,
    pub(crate) event: c_uint,
    pub(crate) status: c_int,
    pub(crate) param: ConnParam,
    rest: [u64; 4],
}

macro_rules! library {
    ($($file:literal as $part:ident { $($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)* })*) => {
        /// The functions of both libraries, by the names that they have there.
        pub(crate) struct Library {
            $($(pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*)*
        }

        impl Library {
            fn load() -> Result<Library, (&'static str, String)> {
                $(
                    // SAFETY: what these libraries do when they are loaded is to set up themselves.
                    let $part = unsafe { libloading::Library::new($file) }
                        .map_err(|error| ($file, error.to_string()))?;
                    $(
                        // SAFETY: the type is that of the function in the library's header.
                        let $name = *unsafe { $part.get(concat!(stringify!($name), "\0").as_bytes()) }
                            .map_err(|error| ($file, error.to_string()))?;
                    )*
                    // The functions are good for as long as the process lives.
                    std::mem::forget($part);
                )*
                Ok(Library { $($($name,)*)* })
            }
        }
    };
}

library! {
    "libibverbs.so.1" as verbs {
        ibv_get_device_list: fn(*mut c_int) -> *mut *mut Opaque;
        ibv_free_device_list: fn(*mut *mut Opaque);
        ibv_get_device_name: fn(*mut Opaque) -> *const c_char;
        ibv_open_device: fn(*mut Opaque) -> *mut Context;
        ibv_close_device: fn(*mut Context) -> c_int;
        ibv_query_device: fn(*mut Context, *mut DeviceAttr) -> c_int;
        ibv_alloc_pd: fn(*mut Context) -> *mut Opaque;
        ibv_dealloc_pd: fn(*mut Opaque) -> c_int;
        ibv_reg_mr: fn(*mut Opaque, *mut c_void, usize, c_int) -> *mut Mr;
        ibv_dereg_mr: fn(*mut Mr) -> c_int;
        ibv_create_comp_channel: fn(*mut Context) -> *mut CompChannel;
        ibv_destroy_comp_channel: fn(*mut CompChannel) -> c_int;
        ibv_create_cq: fn(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
        ibv_destroy_cq: fn(*mut Cq) -> c_int;
        ibv_get_cq_event: fn(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
        ibv_ack_cq_events: fn(*mut Cq, c_uint);
    }
    "librdmacm.so.1" as cm {
        rdma_create_event_channel: fn() -> *mut EventChannel;
        rdma_destroy_event_channel: fn(*mut EventChannel);
        rdma_create_id: fn(*mut EventChannel, *mut *mut CmId, *mut c_void, c_int) -> c_int;
        rdma_destroy_id: fn(*mut CmId) -> c_int;
        rdma_migrate_id: fn(*mut CmId, *mut EventChannel) -> c_int;
        rdma_bind_addr: fn(*mut CmId, *mut libc::sockaddr) -> c_int;
        rdma_resolve_addr: fn(*mut CmId, *mut libc::sockaddr, *mut libc::sockaddr, c_int) -> c_int;
        rdma_resolve_route: fn(*mut CmId, c_int) -> c_int;
        rdma_create_qp: fn(*mut CmId, *mut Opaque, *mut QpInitAttr) -> c_int;
        rdma_destroy_qp: fn(*mut CmId);
        rdma_connect: fn(*mut CmId, *mut ConnParam) -> c_int;
        rdma_listen: fn(*mut CmId, c_int) -> c_int;
        rdma_accept: fn(*mut CmId, *mut ConnParam) -> c_int;
        rdma_reject: fn(*mut CmId, *const c_void, u8) -> c_int;
        rdma_disconnect: fn(*mut CmId) -> c_int;
        rdma_get_cm_event: fn(*mut EventChannel, *mut *mut CmEvent) -> c_int;
        rdma_ack_cm_event: fn(*mut CmEvent) -> c_int;
        rdma_set_option: fn(*mut CmId, c_int, c_int, *mut c_void, usize) -> c_int;
    }
}

/// What came of opening the libraries, and in which process.
type Opened = (u32, Result<Library, (&'static str, String)>);

/// The libraries, opened by the first who asks.
///
/// They keep the devices open, and the kernel lets nobody use a device but the process that has opened it: after a fork
/// there is no using them in the child, and no opening them anew.
pub(crate) fn library() -> Result<&'static Library, RdmaError> {
    static LIBRARY: OnceLock<Opened> = OnceLock::new();
    let (owner, opened) = LIBRARY.get_or_init(|| (std::process::id(), Library::load()));
    if *owner != std::process::id() && opened.is_ok() {
        return Err(RdmaError::Forked { owner: *owner });
    }
    opened.as_ref().map_err(|(library, reason)| RdmaError::Library { library, reason: reason.clone() })
}

#[cfg(all(test, target_pointer_width = "64"))]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn what_is_laid_out_here_is_what_the_headers_of_rdma_core_lay_out() {
        // As a C compiler tells sizeof and offsetof of infiniband/verbs.h and rdma/rdma_cma.h.
        assert_eq!(size_of::<ContextOps>(), 256);
        assert_eq!(offset_of!(Context, ops), 8);
        assert_eq!((offset_of!(ContextOps, poll_cq), offset_of!(ContextOps, req_notify_cq)), (88, 96));
        assert_eq!((offset_of!(ContextOps, post_send), offset_of!(ContextOps, post_recv)), (200, 208));
        assert_eq!((size_of::<Mr>(), offset_of!(Mr, lkey)), (48, 36));
        assert_eq!((size_of::<CompChannel>(), offset_of!(CompChannel, fd)), (16, 8));
        assert_eq!((size_of::<DeviceAttr>(), offset_of!(DeviceAttr, max_mr_size)), (232, 80));
        assert_eq!((offset_of!(DeviceAttr, max_qp), offset_of!(DeviceAttr, max_qp_wr)), (108, 112));
        assert_eq!((offset_of!(DeviceAttr, max_sge), offset_of!(DeviceAttr, max_cq)), (120, 128));
        assert_eq!((offset_of!(DeviceAttr, max_cqe), offset_of!(DeviceAttr, max_mr)), (132, 136));
        assert_eq!((size_of::<QpInitAttr>(), offset_of!(QpInitAttr, cap)), (64, 32));
        assert_eq!((offset_of!(QpInitAttr, qp_type), offset_of!(QpInitAttr, sq_sig_all)), (52, 56));
        assert_eq!((size_of::<SendWr>(), offset_of!(SendWr, imm_data)), (128, 36));
        assert_eq!((size_of::<RecvWr>(), size_of::<Sge>()), (32, 16));
        assert_eq!((size_of::<Wc>(), offset_of!(Wc, byte_len)), (48, 20));
        assert_eq!((offset_of!(Wc, imm_data), offset_of!(Wc, wc_flags)), (24, 36));
        assert_eq!((offset_of!(CmId, qp), offset_of!(CmId, source), offset_of!(CmId, target)), (24, 32, 160));
        assert_eq!((size_of::<CmEvent>(), offset_of!(CmEvent, param)), (80, 24));
        assert_eq!((size_of::<ConnParam>(), offset_of!(ConnParam, qp_num)), (24, 16));
    }
}

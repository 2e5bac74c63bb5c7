//! The devices of this machine and their limits.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::mem::MaybeUninit;

use crate::error::RdmaError;
use crate::ffi::{Context, DeviceAttr, library};

const DEVICES: &str = "/sys/class/infiniband";

/// What a device can have at most, as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Connections.
    pub max_qp: u32,
    /// Requests of one direction of a connection.
    pub max_qp_wr: u32,
    /// Pieces of memory of one request.
    pub max_sge: u32,
    /// Queues of completions.
    pub max_cq: u32,
    /// Completions in one of them.
    pub max_cqe: u32,
    /// Registered pieces of memory.
    pub max_mr: u32,
    /// Bytes of one of them.
    pub max_mr_size: u64,
}

/// A device of this machine.
#[derive(Clone, Debug)]
pub struct Device {
    /// What the system calls it.
    pub name: String,
    /// What it can have at most.
    pub limits: DeviceLimits,
}

/// The names of the devices that the system knows; needs no library.
#[must_use]
pub fn device_names() -> Vec<String> {
    let entries = std::fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The devices of this machine that can be opened.
///
/// # Errors
/// [`RdmaError::NoDevice`], [`RdmaError::Library`], or [`RdmaError::Call`] when one cannot be asked.
pub fn devices() -> Result<Vec<Device>, RdmaError> {
    if device_names().is_empty() {
        return Err(RdmaError::NoDevice);
    }
    let library = library()?;
    let mut count = 0;
    // SAFETY: `count` is written, and the list that comes back is this function's until it is freed.
    let list = unsafe { (library.ibv_get_device_list)(&raw mut count) };
    if list.is_null() {
        return Err(RdmaError::last("ibv_get_device_list"));
    }
    let ask = |index: usize| {
        // SAFETY: the list has `count` devices, which are good until it is freed, and so are their names.
        let device = unsafe { *list.add(index) };
        // SAFETY: the same.
        let name =
            unsafe { CStr::from_ptr((library.ibv_get_device_name)(device)) }.to_string_lossy().into_owned();
        // SAFETY: the device is one of the list.
        let context = unsafe { (library.ibv_open_device)(device) };
        if context.is_null() {
            return Err(RdmaError::last("ibv_open_device"));
        }
        let limits = limits_of(context);
        // SAFETY: the context was opened above, and nobody else has it.
        unsafe { (library.ibv_close_device)(context) };
        Ok(Device { name, limits: limits? })
    };
    let (found, failed): (Vec<_>, Vec<_>) =
        (0..usize::try_from(count).unwrap_or(0)).map(ask).partition(Result::is_ok);
    // SAFETY: it is freed once, and nothing of it is used after.
    unsafe { (library.ibv_free_device_list)(list) };
    let found: Vec<Device> = found.into_iter().flatten().collect();
    match failed.into_iter().find_map(Result::err) {
        Some(error) if found.is_empty() => Err(error),
        None if found.is_empty() => Err(RdmaError::NoDevice),
        // One that cannot be opened keeps nobody from another.
        _ => Ok(found),
    }
}

/// Asks an open device, or says that there is none.
pub(crate) fn limits_of(context: *mut Context) -> Result<DeviceLimits, RdmaError> {
    if context.is_null() {
        return Err(RdmaError::NoDevice);
    }
    let mut told = MaybeUninit::<DeviceAttr>::zeroed();
    // SAFETY: the context is open, and the whole structure is there to be written.
    let code = unsafe { (library()?.ibv_query_device)(context, told.as_mut_ptr()) };
    if code != 0 {
        let source = std::io::Error::from_raw_os_error(code);
        return Err(RdmaError::Call { call: "ibv_query_device", source });
    }
    // SAFETY: it was zeroed, which is a value of every field, and then written.
    let told = unsafe { told.assume_init() };
    let count = |value: i32| u32::try_from(value).unwrap_or(0);
    Ok(DeviceLimits {
        max_qp: count(told.max_qp),
        max_qp_wr: count(told.max_qp_wr),
        max_sge: count(told.max_sge),
        max_cq: count(told.max_cq),
        max_cqe: count(told.max_cqe),
        max_mr: count(told.max_mr),
        max_mr_size: told.max_mr_size,
    })
}

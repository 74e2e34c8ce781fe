//! Devices made of a device.

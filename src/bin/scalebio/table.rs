//! The table of a memory plan, a line a device.

use scalebio::models::DeviceMemory;

/// Bytes of a unit.
pub const MB: u64 = 1_000_000;

/// Columns in multiples of `unit` bytes; equal devices share a line.
pub fn table(devices: &[DeviceMemory], unit: u64) -> String {
    let names = [
        "u",
        "w",
        "masters",
        "moments",
        "gradients",
        "inputs",
        "tape",
        "logits",
        "total",
    ];
    let mut lines = format!("{:<8} {:>7}", "device", "blocks");
    lines.extend(names.map(|name| format!(" {name:>10}")));
    let mut start = 0;
    for equal in devices.chunk_by(|a, b| a == b) {
        let end = start + equal.len() - 1;
        let name = match equal.len() {
            1 => start.to_string(),
            _ => format!("{start}-{end}"),
        };
        let device = &equal[0];
        lines += &format!("\n{name:<8} {:>7}", device.blocks);
        start = end + 1;
        let columns = [
            device.u,
            device.w,
            device.masters,
            device.moments,
            device.gradients,
            device.inputs,
            device.tape,
            device.logits,
            device.total,
        ];
        let columns = columns.map(|bytes| format!(" {:>10.1}", bytes as f64 / unit as f64));
        lines.extend(columns);
    }
    lines + "\n"
}

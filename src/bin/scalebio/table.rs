//! The table of a memory plan, a line a device.

use scalebio::models::{DeviceMemory, MemoryPlan};

/// Bytes of a unit.
pub const MB: u64 = 1_000_000;

/// A figure of a device.
type Column = fn(&DeviceMemory) -> u64;

const COLUMNS: [(&str, Column); 10] = [
    ("u", |memory| memory.u),
    ("w", |memory| memory.w),
    ("masters", |memory| memory.masters),
    ("moments", |memory| memory.moments),
    ("gradients", |memory| memory.gradients),
    ("inputs", |memory| memory.inputs),
    ("tape", |memory| memory.tape),
    ("logits", |memory| memory.logits),
    ("copies", |memory| memory.copies),
    ("total", |memory| memory.total),
];

/// Columns in multiples of `unit` bytes; equal devices share a line. Copies, the host and what is moved only where something is
/// offloaded.
pub fn table(plan: &MemoryPlan, unit: u64) -> String {
    let offloads = plan.host().is_some();
    let columns = COLUMNS.iter();
    let columns: Vec<_> = columns
        .filter(|(name, _)| offloads || *name != "copies")
        .collect();
    let line = |name: &str, blocks: &str, memory: &DeviceMemory| {
        let figures = columns.iter().map(|(_, figure)| figure(memory));
        let figures = figures.map(|bytes| format!(" {:>10.1}", bytes as f64 / unit as f64));
        format!("\n{name:<8} {blocks:>7}{}", figures.collect::<String>())
    };
    let mut lines = format!("{:<8} {:>7}", "device", "blocks");
    lines.extend(columns.iter().map(|(name, _)| format!(" {name:>10}")));
    let mut start = 0;
    for equal in plan.devices().chunk_by(|a, b| a == b) {
        let end = start + equal.len() - 1;
        let name = match equal.len() {
            1 => start.to_string(),
            _ => format!("{start}-{end}"),
        };
        lines += &line(&name, &equal[0].blocks.to_string(), &equal[0]);
        start = end + 1;
    }
    if let Some(host) = plan.host() {
        lines += &line("host", "", host);
        lines += &format!(
            "\na step moves {:.1} between host and devices",
            plan.bytes_moved() as f64 / unit as f64
        );
    }
    lines + "\n"
}

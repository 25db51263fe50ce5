//! The data of the benchmark problem `simulated`.

use std::error::Error;
use std::path::Path;

use scalebio::problems::Simulated;

/// Reads them from the repository; the published package leaves them out, as it does all fixtures.
pub fn read() -> Result<Simulated, Box<dyn Error>> {
    let file = "tests/fixtures/simulated/problem.safetensors";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if !path.exists() {
        let path = path.display();
        return Err(format!(
            "{path}: not here, since the published package has no fixtures; run this example from the repository"
        )
        .into());
    }
    Ok(Simulated::read(path)?)
}

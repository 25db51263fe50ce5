//! A module's trainable parameters as one list of plain numbers, for problems that are small.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};

/// The entries of the parameters that require a gradient.
pub(super) fn entries<M: Module>(module: &M) -> Vec<f64> {
    struct Entries(Vec<f64>);

    impl ModuleVisitor for Entries {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                let data = param.val().inner().into_data();
                self.0.extend(data.iter::<f64>());
            }
        }
    }

    let mut entries = Entries(Vec::new());
    module.visit(&mut entries);
    entries.0
}

/// The same entries of a gradient. 0 for a parameter without one.
pub(super) fn gradient<M: Module>(module: &M, gradients: &GradientsParams) -> Vec<f64> {
    struct Gradient<'a> {
        gradients: &'a GradientsParams,
        entries: Vec<f64>,
    }

    impl ModuleVisitor for Gradient<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            match self.gradients.get::<D>(param.id) {
                Some(gradient) => self.entries.extend(gradient.into_data().iter::<f64>()),
                None => {
                    let length = self.entries.len() + param.val().shape().num_elements();
                    self.entries.resize(length, 0.0);
                }
            }
        }
    }

    let mut gradient = Gradient {
        gradients,
        entries: Vec::new(),
    };
    module.visit(&mut gradient);
    gradient.entries
}

/// `module` with these entries in its trainable parameters, and gradients of its own.
pub(super) fn placed<M: Module>(module: &M, entries: &[f64]) -> M {
    struct Place<'a>(&'a [f64]);

    impl ModuleMapper for Place<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, value, mapper) = param.consume();
            let require_grad = value.is_require_grad();
            let count = value.shape().num_elements();
            let value = match self.0.split_at_checked(count).filter(|_| require_grad) {
                None => value.detach(),
                Some((here, rest)) => {
                    self.0 = rest;
                    let data = TensorData::new(here.to_vec(), value.shape());
                    Tensor::from_data(data, (&value.device(), value.dtype()))
                }
            };
            Param::from_mapped_value(id, value.set_require_grad(require_grad), mapper)
        }
    }

    module.clone().map(&mut Place(entries))
}

/// What to call each entry: `path[i, j]`, or `[i]` of a module that is a parameter itself.
pub(super) fn names<M: Module>(module: &M) -> Vec<String> {
    #[derive(Default)]
    struct Names {
        path: Vec<String>,
        names: Vec<String>,
    }

    impl ModuleVisitor for Names {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            let (path, dims) = (self.path.join("."), param.val().dims());
            for mut rest in 0..dims.iter().product() {
                let mut index = Vec::new();
                for size in dims.iter().rev() {
                    index.insert(0, (rest % size).to_string());
                    rest /= size;
                }
                self.names.push(format!("{path}[{}]", index.join(", ")));
            }
        }
    }

    let mut names = Names::default();
    module.visit(&mut names);
    names.names
}

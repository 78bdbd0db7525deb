//! Inputs from and results to safetensors files.

use std::{fs, path::Path};

use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{Aligned, Data, Result, Tensor};

/// `q [B,H,N,D]`, `k [B,G,M,D]`, `v [B,G,M,Dv]`, the gradient of the output, `do [B,H,N,Dv]`, and what a [`crate::Rule`] needs.
pub struct Inputs {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub d_o: Option<Tensor>,
    pub side: Side,
}

/// Numbers of keys and sequences; empty where the file has none.
#[derive(Default)]
pub struct Side {
    /// `[B,G,M]`.
    pub key_bias: Vec<f32>,
    /// `[B,G,M]`.
    pub until: Vec<i64>,
    /// Where each sequence begins, and where the last one ends.
    pub offsets: Vec<usize>,
}

impl Inputs {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let tensor = |name: &str| tensor_from(name, &file.tensor(name)?);
        Ok(Self {
            q: tensor("q")?,
            k: tensor("k")?,
            v: tensor("v")?,
            d_o: file.names().contains(&"do").then(|| tensor("do")).transpose()?,
            side: Side::read(&file)?,
        })
    }

    /// `[B, H, N, Dv]`, the shape of the output.
    pub fn output_shape(&self) -> [usize; 4] {
        let [batch, heads, queries, _] = self.q.shape;
        [batch, heads, queries, self.v.shape[3]]
    }
}

impl Side {
    fn read(file: &SafeTensors<'_>) -> Result<Self> {
        let offsets = values(file, "offsets", Dtype::I64, i64::from_le_bytes)?;
        Ok(Self {
            key_bias: values(file, "key_bias", Dtype::F32, f32::from_le_bytes)?,
            until: values(file, "until", Dtype::I64, i64::from_le_bytes)?,
            offsets: offsets.into_iter().map(usize::try_from).collect::<std::result::Result<_, _>>()?,
        })
    }
}

/// The values of a tensor, none if the file does not have it.
fn values<T, const BYTES: usize>(file: &SafeTensors<'_>, name: &str, dtype: Dtype, decode: fn([u8; BYTES]) -> T) -> Result<Vec<T>> {
    let Ok(view) = file.tensor(name) else {
        return Ok(Vec::new());
    };
    if view.dtype() != dtype {
        return Err(format!("{name} is {:?}; {dtype:?} is expected", view.dtype()).into());
    }
    let (whole, _) = view.data().as_chunks::<BYTES>();
    Ok(whole.iter().map(|bytes| decode(*bytes)).collect())
}

pub(crate) fn write(path: &Path, tensors: &[(&'static str, &Tensor)]) -> Result<()> {
    let views = tensors.iter().map(|(name, tensor)| Ok((*name, view(tensor)?))).collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, path)?;
    Ok(())
}

fn tensor_from(name: &str, view: &TensorView<'_>) -> Result<Tensor> {
    let shape = view.shape().try_into().map_err(|_| format!("{name} has {} dimensions, not 4", view.shape().len()))?;
    let len = view.shape().iter().product();
    let data = match view.dtype() {
        Dtype::F32 => {
            let mut values = Aligned::<f32>::zeros(len);
            bytemuck::cast_slice_mut(&mut values).copy_from_slice(view.data());
            Data::F32(values)
        }
        Dtype::BF16 => {
            let mut values = Aligned::<bf16>::zeros(len);
            bytemuck::cast_slice_mut(&mut values).copy_from_slice(view.data());
            Data::Bf16(values)
        }
        other => return Err(format!("{name} is {other:?}; F32 or BF16 is expected").into()),
    };
    Ok(Tensor { shape, data })
}

fn view(tensor: &Tensor) -> Result<TensorView<'_>> {
    let (dtype, bytes) = match &tensor.data {
        Data::F32(values) => (Dtype::F32, bytemuck::cast_slice(values)),
        Data::Bf16(values) => (Dtype::BF16, bytemuck::cast_slice(values)),
    };
    Ok(TensorView::new(dtype, tensor.shape.to_vec(), bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_keys_are_read_and_wrong_types_refused() {
        let bytes: Vec<u8> = [0i64, 512, 1024].iter().flat_map(|x| x.to_le_bytes()).collect();
        let offsets = TensorView::new(Dtype::I64, vec![3], &bytes).unwrap();
        let file = safetensors::serialize([("offsets", &offsets)], None).unwrap();
        let side = Side::read(&SafeTensors::deserialize(&file).unwrap()).unwrap();
        assert_eq!(side.offsets, [0, 512, 1024]);
        assert!(side.key_bias.is_empty() && side.until.is_empty());
        let file = safetensors::serialize([("key_bias", &offsets)], None).unwrap();
        let refused = Side::read(&SafeTensors::deserialize(&file).unwrap());
        assert!(refused.err().unwrap().to_string().contains("key_bias is I64; F32 is expected"));
    }
}

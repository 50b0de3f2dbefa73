// Fused elementwise part of a binary block on the CPU, NHWC bf16:
//   y = prelu(scale * c + bias; alpha); p = maxpool2x2(y); z = BatchNorm(p); out = sign(z)
// Sums are over a fixed number of chunks of images, added in order: the result doesn't depend on the thread count.
#include <torch/extension.h>
#include <ATen/Parallel.h>
#include <cstdint>
#include <cstring>
#include <vector>
using torch::Tensor;
typedef uint16_t bf;
static constexpr int CH = 16;
static inline float f(bf x) { uint32_t u = uint32_t(x) << 16; float r; memcpy(&r, &u, 4); return r; }
static inline bf b(float x) { uint32_t u; memcpy(&u, &x, 4); u += 0x7fff + ((u >> 16) & 1); return bf(u >> 16); }

template <int C>
static void pool_t(const bf* c, float* p, uint8_t* idx, float* part, int64_t N, int64_t H, int64_t W, float s, const float* bias, const float* alpha) {
  int64_t h = H / 2, w = W / 2;
  at::parallel_for(0, CH, 1, [&](int64_t a, int64_t z) {
    for (int64_t t = a; t < z; t++) {
      float s1[C] = {0}, s2[C] = {0};
      for (int64_t n = N * t / CH; n < N * (t + 1) / CH; n++)
        for (int64_t y = 0; y < h; y++) for (int64_t x = 0; x < w; x++) {
          const bf* c0 = c + ((n * H + 2 * y) * W + 2 * x) * C; const bf* c1 = c0 + C; const bf* c2 = c0 + W * C; const bf* c3 = c2 + C;
          int64_t o = ((n * h + y) * w + x) * C; float* po = p + o; uint8_t* io = idx + o;
          for (int k = 0; k < C; k++) {
            float v0 = f(c0[k]) * s + bias[k], v1 = f(c1[k]) * s + bias[k], v2 = f(c2[k]) * s + bias[k], v3 = f(c3[k]) * s + bias[k];
            float A = alpha[k];
            float y0 = v0 < 0 ? A * v0 : v0, y1 = v1 < 0 ? A * v1 : v1, y2 = v2 < 0 ? A * v2 : v2, y3 = v3 < 0 ? A * v3 : v3;
            float m = y0, v = v0; int i = 0;
            bool g1 = y1 > m; m = g1 ? y1 : m; v = g1 ? v1 : v; i = g1 ? 1 : i;
            bool g2 = y2 > m; m = g2 ? y2 : m; v = g2 ? v2 : v; i = g2 ? 2 : i;
            bool g3 = y3 > m; m = g3 ? y3 : m; v = g3 ? v3 : v; i = g3 ? 3 : i;
            i |= v < 0 ? 4 : 0;
            po[k] = m; io[k] = uint8_t(i); s1[k] += m; s2[k] += m * m;
          }
        }
      memcpy(part + t * 2 * C, s1, 4 * C); memcpy(part + t * 2 * C + C, s2, 4 * C);
    }
  });
}
std::vector<Tensor> pool_fwd(Tensor c, double s, Tensor bias, Tensor alpha) { // c [N,H,W,C] bf16
  int64_t N = c.size(0), H = c.size(1), W = c.size(2), C = c.size(3);
  auto p = torch::empty({N, H / 2, W / 2, C}, torch::kFloat); auto idx = torch::empty({N, H / 2, W / 2, C}, torch::kByte);
  auto part = torch::zeros({CH, 2, C}, torch::kFloat);
  auto run = C == 32 ? pool_t<32> : pool_t<64>;
  run((bf*)c.data_ptr(), p.data_ptr<float>(), idx.data_ptr<uint8_t>(), part.data_ptr<float>(), N, H, W, s, bias.data_ptr<float>(), alpha.data_ptr<float>());
  return {p, idx, part.to(torch::kDouble).sum(0)};
}
template <int C>
static void sign_t(const float* p, bf* o, const float* a, const float* bb, int64_t M) {
  at::parallel_for(0, M, 4096, [&](int64_t s, int64_t e) {
    for (int64_t m = s; m < e; m++) for (int k = 0; k < C; k++) o[m * C + k] = p[m * C + k] * a[k] + bb[k] >= 0 ? 0x3f80 : 0xbf80;
  });
}
Tensor sign_fwd(Tensor p, Tensor a, Tensor bb) {
  int64_t C = p.size(3); auto o = torch::empty(p.sizes(), torch::kBFloat16);
  (C == 32 ? sign_t<32> : sign_t<64>)(p.data_ptr<float>(), (bf*)o.data_ptr(), a.data_ptr<float>(), bb.data_ptr<float>(), p.numel() / C);
  return o;
}
// Derivative that stands for sign's: ApproxSign's max(0, 2 - 2|z|), or with STE the clipped identity's 1 where |z| <= 1.
template <bool STE> static inline float derivative(float z) { float u = z < 0 ? -z : z; return STE ? (u <= 1 ? 1.f : 0.f) : (u < 1 ? 2 - 2 * u : 0.f); }
template <int C, bool STE>
static void sums_t(const bf* g, const float* p, const float* a, const float* bb, float* part, int64_t M) {
  at::parallel_for(0, CH, 1, [&](int64_t st, int64_t e) {
    for (int64_t t = st; t < e; t++) {
      float s1[C] = {0}, s2[C] = {0};
      for (int64_t m = M * t / CH; m < M * (t + 1) / CH; m++) for (int k = 0; k < C; k++) {
        float z = p[m * C + k] * a[k] + bb[k], gz = f(g[m * C + k]) * derivative<STE>(z);
        s1[k] += gz; s2[k] += gz * p[m * C + k];
      }
      memcpy(part + t * 2 * C, s1, 4 * C); memcpy(part + t * 2 * C + C, s2, 4 * C);
    }
  });
}
template <int C, bool STE>
static void back_t(const bf* __restrict g, const float* __restrict p, const uint8_t* __restrict idx, const bf* __restrict c, const float* a, const float* bb, const float* q0, const float* q1, const float* q2,
                   const float* __restrict bias, const float* __restrict alpha, bf* __restrict gc, float* part, int64_t N, int64_t H, int64_t W, float s) {
  int64_t h = H / 2, w = W / 2;
  at::parallel_for(0, CH, 1, [&](int64_t st, int64_t e) {
    for (int64_t t = st; t < e; t++) {
      float s1[C] = {0}, s2[C] = {0};
      for (int64_t n = N * t / CH; n < N * (t + 1) / CH; n++)
        for (int64_t y = 0; y < h; y++) for (int64_t x = 0; x < w; x++) {
          int64_t i0 = ((n * H + 2 * y) * W + 2 * x) * C, i1 = i0 + C, i2 = i0 + W * C, i3 = i2 + C;
          int64_t o = ((n * h + y) * w + x) * C; bf R[C]; uint16_t I[C];
          for (int k = 0; k < C; k++) {
            float P = p[o + k]; float z = P * a[k] + bb[k];
            float gz = f(g[o + k]) * derivative<STE>(z);
            float gp = q0[k] * gz + q1[k] * P + q2[k];     // gradient of the pooled value, BatchNorm done
            int i = idx[o + k]; bool neg = i & 4; i &= 3;
            float c0 = f(c[i0 + k]), c1 = f(c[i1 + k]), c2 = f(c[i2 + k]), c3 = f(c[i3 + k]);
            float v = c0; v = i == 1 ? c1 : v; v = i == 2 ? c2 : v; v = i == 3 ? c3 : v; v = v * s + bias[k];
            float gv = neg ? gp * alpha[k] : gp;
            s1[k] += gv; s2[k] += neg ? gp * v : 0.f;
            R[k] = b(gv * s); I[k] = uint16_t(i);
          }
          for (int k = 0; k < C; k++) {
            bf r = R[k]; uint16_t i = I[k];
            gc[i0 + k] = i == 0 ? r : 0; gc[i1 + k] = i == 1 ? r : 0; gc[i2 + k] = i == 2 ? r : 0; gc[i3 + k] = i == 3 ? r : 0;
          }
        }
      memcpy(part + t * 2 * C, s1, 4 * C); memcpy(part + t * 2 * C + C, s2, 4 * C);
    }
  });
}
Tensor bwd_sums(Tensor g, Tensor p, Tensor a, Tensor bb, bool ste) {
  int64_t C = p.size(3); auto part = torch::zeros({CH, 2, C}, torch::kFloat);
  auto run = C == 32 ? (ste ? sums_t<32, true> : sums_t<32, false>) : (ste ? sums_t<64, true> : sums_t<64, false>);
  run((bf*)g.data_ptr(), p.data_ptr<float>(), a.data_ptr<float>(), bb.data_ptr<float>(), part.data_ptr<float>(), p.numel() / C);
  return part.to(torch::kDouble).sum(0);
}
std::vector<Tensor> bwd(Tensor g, Tensor p, Tensor idx, Tensor c, Tensor a, Tensor bb, Tensor q, Tensor bias, Tensor alpha, double s, bool ste) {
  int64_t N = c.size(0), H = c.size(1), W = c.size(2), C = c.size(3);
  auto gc = torch::empty(c.sizes(), torch::kBFloat16); auto part = torch::zeros({CH, 2, C}, torch::kFloat);
  const float* Q = q.data_ptr<float>();
  auto run = C == 32 ? (ste ? back_t<32, true> : back_t<32, false>) : (ste ? back_t<64, true> : back_t<64, false>);
  run((bf*)g.data_ptr(), p.data_ptr<float>(), idx.data_ptr<uint8_t>(), (bf*)c.data_ptr(), a.data_ptr<float>(), bb.data_ptr<float>(),
      Q, Q + C, Q + 2 * C, bias.data_ptr<float>(), alpha.data_ptr<float>(), (bf*)gc.data_ptr(), part.data_ptr<float>(), N, H, W, s);
  return {gc, part.to(torch::kDouble).sum(0).to(torch::kFloat)};
}
// Crops with a shift and a mirror; edges repeat. images u8 [*,32,32,3] -> bf16 [N,32,32,3] of 2q-255.
Tensor crop(Tensor images, Tensor index, Tensor dy, Tensor dx, Tensor flip) {
  int64_t N = index.numel(), S = images.size(1); auto out = torch::empty({N, S, S, 3}, torch::kBFloat16);
  const uint8_t* im = images.data_ptr<uint8_t>(); bf* o = (bf*)out.data_ptr(); const int64_t *I = index.data_ptr<int64_t>(), *Y = dy.data_ptr<int64_t>(), *X = dx.data_ptr<int64_t>(), *F = flip.data_ptr<int64_t>();
  bf table[256]; for (int i = 0; i < 256; i++) table[i] = b(2.f * i - 255.f);
  at::parallel_for(0, N, 16, [&](int64_t s, int64_t e) {
    for (int64_t n = s; n < e; n++) for (int64_t y = 0; y < S; y++) for (int64_t x = 0; x < S; x++) {
      int64_t yy = std::min(std::max<int64_t>(y + Y[n], 0), S - 1), xx = std::min(std::max<int64_t>((F[n] ? S - 1 - x : x) + X[n], 0), S - 1);
      const uint8_t* q = im + ((I[n] * S + yy) * S + xx) * 3; bf* r = o + ((n * S + y) * S + x) * 3;
      r[0] = table[q[0]]; r[1] = table[q[1]]; r[2] = table[q[2]];
    }
  });
  return out;
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("pool_fwd", &pool_fwd); m.def("sign_fwd", &sign_fwd); m.def("bwd_sums", &bwd_sums); m.def("bwd", &bwd); m.def("crop", &crop);
}

// The forward process and the targets that denoisers are trained on.
#pragma once

#include "lanes.h"

namespace udp {

// x_t = signal * x + noise_level * n
struct Levels {
    float signal, noise;
};
// DDPM: sqrt(abar_t) and sqrt(1 - abar_t).
UDP_HD Levels diffusion_levels(float alpha_cumprod) {
    return {sqrt(alpha_cumprod), sqrt(1.0f - alpha_cumprod)};
}
// Rectified flow: 1 - sigma_t and sigma_t.
UDP_HD Levels flow_levels(float sigma) {
    return {1.0f - sigma, sigma};
}

template <class F>
UDP_HD F diffuse(F x, F n, F signal, F noise) {
    return fma(signal, x, noise * n);
}

// v = signal * n - noise * x (Salimans and Ho, 2022).
template <class F>
UDP_HD F velocity(F x, F n, F signal, F noise) {
    return fma(signal, n, F(0.0f) - noise * x);
}

}  // namespace udp

/** The shape of one model of the family, read from GGUF metadata (keys and quirks: gguf.ts in this folder reads them). */

export interface YarnConfig {
  readonly factor: number;
  readonly originalContext: number;
  readonly betaFast: number;
  readonly betaSlow: number;
  /** m of the softmax scale: 1 + 0.1 * mscale_all_dim * ln(factor); the scale is m^2 / sqrt(nope + rope). */
  readonly attentionFactor: number;
  /** What cos and sin are multiplied by; 1 whenever mscale equals mscale_all_dim. */
  readonly magnitude: number;
}

export interface ModelConfig {
  readonly name: string;
  readonly architecture: string;
  readonly layers: number;
  readonly denseLayers: number;
  readonly hidden: number;
  readonly vocabulary: number;
  readonly context: number;
  readonly heads: number;
  /** 0: no low-rank query, a plain q projection. */
  readonly qRank: number;
  readonly kvRank: number;
  readonly nopeDim: number;
  readonly ropeDim: number;
  readonly valueDim: number;
  readonly denseWidth: number;
  readonly experts: number;
  readonly expertsUsed: number;
  readonly expertWidth: number;
  /** Width of the fused shared expert (n_shared * expert width); 0: none. */
  readonly sharedWidth: number;
  readonly expertGroups: number;
  readonly expertGroupsUsed: number;
  readonly gating: 'softmax' | 'sigmoid';
  readonly normalizeWeights: boolean;
  readonly weightScale: number;
  readonly rmsEps: number;
  readonly ropeBase: number;
  readonly yarn: YarnConfig | null;
  /** Where the YaRN betas came from, for people: "file", "Kimi K2 default", "--yarn-beta-fast", "llama.cpp default". */
  readonly yarnBetaSource: string;
}

import { describe, expect, it } from 'vitest';
import { takeKtransformersFlags } from '../../src/cli/ktransformers.ts';

function take(line: string): { kept: string[]; notices: string[] } {
  const notices: string[] = [];
  return { kept: takeKtransformersFlags(line.split(' '), (notice) => notices.push(notice)), notices };
}

describe("KTransformers' flags", () => {
  it('start this server from the command line of their guide', () => {
    const { kept, notices } = take(
      'serve --port 10002 --model_path /models/Kimi-K2 --gguf_path /models/k2.gguf --optimize_config_path rules.yaml ' +
        '--max_new_tokens 1024 --cache_lens 32768 --chunk_size 256 --max_batch_size 4 --backend_type balance_serve --cpu_infer 65',
    );
    expect(kept).toEqual(
      'serve --port 10002 --model /models/k2.gguf --optimize-config-path rules.yaml --cache-tokens 32768 --chunk-size 256 --max-batch-size 4 --threads 65'.split(
        ' ',
      ),
    );
    expect(notices).toHaveLength(3);
    expect(take('serve --device cuda:1').notices).toEqual([expect.stringContaining('by --optimize_config_path')]);
  });

  it('read the model from --model_path where no GGUF is named', () => {
    expect(take('serve --model_path /models/k2.gguf')).toEqual({
      kept: ['serve', '--model', '/models/k2.gguf'],
      notices: [],
    });
  });

  it('drop the values of flags without effect, and no more', () => {
    expect(take('serve --cache_q4 true --web=False --use_cuda_graph model.gguf').kept).toEqual(['serve', 'model.gguf']);
    expect(take('serve --no-use_cuda_graph --force_think --host 127.0.0.1').kept).toEqual([
      'serve',
      '--host',
      '127.0.0.1',
    ]);
    expect(take('serve --smoothing_factor -1 --port 1').kept).toEqual(['serve', '--port', '1']);
  });

  it('are the same with dashes', () => {
    expect(take('serve --api-key k --model-name n').kept).toEqual(take('serve --api_key k --model_name n').kept);
  });

  it('leave unknown flags for the parser to refuse', () => {
    expect(take('serve --no_such_flag 1').kept).toEqual(['serve', '--no-such-flag', '1']);
  });
});

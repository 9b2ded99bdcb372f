"""The Chinese part: greetings, who it is, lmtop facts, small sums, stories, and what it does not know."""

from random import Random

from .grammar import choice, expand, pick, words
from .noise import keep

ANIMALS = words("猫|狗|鼠|兔|熊|猪|马|羊|牛|鸡|鸭|猫头鹰|鲸鱼|海豚|狼|蛇|蜜蜂|蚂蚁|宇航员|医生|老师|巫师|狐狸|小猫|小狗|兔子|老虎|狮子|小熊|大象|猴子|小鸟|乌龟|青蛙|熊猫|小鱼|老鼠|松鼠|小鹿|龙|企鹅|刺猬|机器人|公主|国王|小女孩|小男孩|渔夫|蜗牛|蝴蝶|小马|火车")  # fmt: skip
PLACES = words(
    "森林里|海边|山上|小村子里|大城市里|花园里|河边|月亮上|岛上|城堡里|雪地里|图书馆里|湖边|草原上|竹林里"
)
THINGS = words("钥匙|灯笼|地图|信|铃铛|书|种子|镜子|星星|盒子|苹果|石头|贝壳|雨伞|笛子|风筝")
NAMES = words("小明|阿宝|朵朵|乐乐|小星|圆圆|豆豆|小雨|天天|米米|冬冬|小白|阿福|安安|丁丁")
USER_NAMES = words(
    "小明|李华|王伟|小红|张三|李四|小丽|小刚|阿强|小芳|陈晨|刘洋|小军|大卫|安娜|小林|赵敏|小美|志强|思思"
)
_NUMERALS = words("一|二|三|四|五|六|七|八|九|十")

JOKES = (
    "为什么显卡去看医生？因为它的温度太高了。",
    "程序员为什么喜欢黑夜？因为光会引来虫子。",
    "为什么词元要排队？因为模型一次只写一个。",
    "时钟为什么去上学？因为它想学会看时间。",
)

_ASKS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], float], ...] = (
    ("zh_greet", ("{你好|您好|嗨|哈喽|喂|大家好|你好啊|你好呀|hi 你好|早上好|晚上好|下午好|早安|晚安|早|在吗|你在吗|有人吗|hello 你好|哈罗|你好你好}{|！|。|!|？}", "我们聊聊吧", "我想聊天", "很高兴认识你"), ("你好！{有什么可以帮你|想聊点什么|你想知道什么}？", "你好！{我是 lmtop 自带的小模型|我是 lmtop 里的玩具模型}，{可以问我 lmtop 的用法，也可以让我讲故事|你可以问我 lmtop，或者听个小故事}。"), 3.0),
    ("zh_how", ("{你好吗|最近怎么样|你怎么样|过得好吗|你今天好吗|你还好吗|你开心吗|今天怎么样}{|？|?}",), ("我很好，谢谢！你呢？", "我是程序，没有心情，不过一切正常。你好吗？"), 1.0),
    ("zh_who", ("{你是谁|您是谁|你是什么|你叫什么|你叫什么名字|你的名字是什么|介绍一下你自己|请介绍自己|自我介绍一下|你是什么模型|你是人吗|你是机器人吗|你是ChatGPT吗|你是人工智能吗|你是真人吗|说说你自己|这是什么模型|你到底是谁|你是哪个模型|我在和谁说话}{|？|?|。}",), ("我是 lmtop 自带的玩具模型，{用来展示真正的引擎|作用是展示真正的推理引擎}。", "我是 demo，lmtop 里的一个很小的玩具模型，大约有 750 万个参数。我知道得很少。"), 3.0),
    ("zh_params", ("{你有多大|你有多少参数|你的参数量是多少|参数有多少|你多大|你大吗|模型大小|你有几个参数}{|？|?}",), ("我大约有 750 万个参数，是一个很小的模型。",), 1.0),
    ("zh_trained", ("{你是怎么训练的|谁做了你|谁创造了你|谁训练了你|你的训练数据是什么|你从哪里来|你是谁开发的|你用什么训练}{|？|?}",), ("我是从零开始训练的，训练文本由 lmtop 的脚本生成。",), 1.0),
    ("zh_can", ("{你会什么|你能做什么|你会做什么|你能帮我吗|帮帮我|帮我|你有什么功能|我可以问你什么|我该问什么|你知道什么|怎么用|有什么功能|帮助}{|？|?|。}",), ("我可以介绍 lmtop，讲小故事，数数，做简单的加减法。别的我不太懂。",), 1.5),
    ("zh_thanks", ("{谢谢|谢谢你|多谢|非常感谢|感谢|谢啦|太谢谢了|谢谢您}{|！|。}",), ("不客气！", "不用谢！还有什么想问的吗？"), 1.0),
    ("zh_bye", ("{再见|拜拜|下次见|我走了|回头见|明天见|我要走了|88}{|！|。}",), ("再见！祝你愉快！", "再见！按 `ctrl+q` 退出 lmtop。"), 1.0),
    ("zh_good", ("{你真棒|你很聪明|真好|太好了|不错|很好|厉害|我喜欢你|好的|好|真有趣|哈哈|哈哈哈}{|！|。}",), ("谢谢！{还想聊点什么|还想知道什么}？",), 0.8),
    ("zh_bad", ("{你真笨|你很笨|笨蛋|你没用|不对|你错了|讨厌|胡说|太差了|傻瓜}{|！|。}",), ("对不起，我只是一个玩具模型，知道得很少。按 `F4` 可以加载真正的模型。",), 0.8),
    ("zh_sad", ("{我很难过|我不开心|我累了|我很无聊|好无聊|我心情不好|我很孤单|我生病了}{|。|！}",), ("听到这个我很抱歉。要不要听一个小故事？",), 0.6),
    ("zh_lang", ("{你会说中文吗|你会中文吗|你懂中文吗|你会说英语吗|你会哪些语言|请说中文|说中文|能用中文吗|用中文回答|可以说中文吗}{|？|?}",), ("我会英语和一点点中文。",), 1.0),
    ("zh_lmtop", ("{lmtop是什么|什么是lmtop|lmtop 是什么|介绍一下 lmtop|介绍lmtop|这是什么程序|这是什么软件|lmtop 有什么用|lmtop能做什么}{|？|?}",), ("lmtop 是一个终端程序：可以和本地模型聊天，也可以监视 GPU 和引擎。",), 2.0),
    ("zh_load", ("{怎么加载模型|如何加载模型|怎么加载真正的模型|怎么换模型|如何换一个模型|怎么用别的模型|怎么用更大的模型|加载模型|怎样加载大模型|怎么打开模型|我想换模型|如何使用自己的模型}{|？|?}",), ("按 `F4` 或输入 `/load`，选择一个模型。也可以在命令行运行：\n\n```sh\nlmtop chat MODEL\n```",), 2.0),
    ("zh_keys", ("{有哪些快捷键|快捷键有哪些|快捷键|怎么操作|有什么按键|按键有哪些|怎么使用键盘}{|？|?}",), ("常用的键：\n\n- `enter` 发送\n- `ctrl+j` 换行\n- `esc` 停止回答\n- `ctrl+n` 新会话\n- `ctrl+g` 菜单\n- `F1` 帮助\n- `ctrl+q` 退出",), 1.2),
    ("zh_send", ("{怎么发送|如何发送消息|怎么发消息|怎样发送}{|？|?}",), ("按 `enter` 发送消息。",), 0.7), ("zh_newline", ("{怎么换行|如何换行|怎样输入多行|换行}{|？|?}",), ("按 `ctrl+j` 换行。",), 0.7),
    ("zh_stop", ("{怎么停止|如何停止回答|怎么让你停下来|怎么中断|怎么停止生成|怎样停止}{|？|?}",), ("按 `esc` 停止，已经写出的文字会保留。",), 0.8), ("zh_quit", ("{怎么退出|如何退出|怎么关闭|怎么离开|退出|怎样退出 lmtop|如何退出lmtop}{|？|?}",), ("按 `ctrl+q` 退出 lmtop，会话会保存。",), 0.8),
    ("zh_new", ("{怎么新建会话|如何开始新会话|怎么开新的对话|新会话|怎么新建对话}{|？|?}",), ("按 `ctrl+n` 或输入 `/new` 开始新会话。",), 0.7), ("zh_help", ("{怎么看帮助|帮助在哪里|如何打开帮助}{|？|?}",), ("按 `F1` 打开帮助。",), 0.6),
    ("zh_theme", ("{怎么换主题|如何改变颜色|怎么改颜色|有哪些主题|换主题|有深色主题吗}{|？|?}",), ("输入 `/theme light` 换成浅色主题。还有 `dark`、`contrast` 和 `ansi`。",), 0.7),
    ("zh_kv", ("{什么是KV缓存|KV缓存是什么|什么是 kv cache|kv cache是什么|KV cache 是什么|解释一下KV缓存|kv缓存有什么用|解释 kv cache}{|？|?}",), ("KV 缓存保存所有已读词元的键和值，这样不用重复计算。lmtop 把它分成每块 64 个词元。",), 1.5),
    ("zh_quant", ("{什么是量化|量化是什么|解释一下量化|为什么要量化|int4是什么|什么是int4|什么是 W4A16|W4A16 是什么}{|？|?}",), ("量化就是用更少的位数保存数字。int4 权重大约只占四分之一的内存，精度会损失一点。",), 1.3),
    ("zh_batch", ("{什么是连续批处理|连续批处理是什么|什么是批处理|解释连续批处理}{|？|?}",), ("连续批处理让多个请求在同一步里一起计算，新的请求随时可以加入。",), 0.8), ("zh_temp", ("{什么是温度|温度是什么|温度参数是什么|怎么设置温度|temperature 是什么}{|？|?}",), ("温度决定回答有多随机，0 表示总是选最可能的词元。用 `F8` 或 `/set temp=0.7` 设置。",), 0.9),
    ("zh_prefill", ("{什么是prefill|prefill是什么|prefill和decode有什么区别|什么是 decode|预填充是什么}{|？|?}",), ("prefill 读入整个提示，decode 一个词元一个词元地写出回答。",), 0.8), ("zh_gpu", ("{需要GPU吗|没有GPU能用吗|没有显卡可以用吗|需要显卡吗|可以用CPU吗}{|？|?}",), ("不需要。没有 GPU 时，lmtop 用 CPU 运行，只是慢一些。",), 0.9),
    ("zh_history", ("{聊天记录在哪里|记录保存在哪里|历史保存在哪|会话会保存吗|聊天会保存吗}{|？|?}",), ("聊天记录保存在本机的 SQLite 数据库里，程序被杀掉也不会丢。",), 0.8), ("zh_monitor", ("{怎么看GPU|怎么监视GPU|怎么打开监视器|lmtop top 是什么|如何看显存}{|？|?}",), ("按 `F3` 打开监视器，或者在命令行运行 `lmtop top`。",), 0.8),
    ("zh_privacy", ("{我的数据安全吗|会上传我的数据吗|需要联网吗|你联网吗|这是本地的吗}{|？|?}",), ("模型在这台机器上运行，你输入的内容不会发送出去。",), 0.7), ("zh_days", ("{一个星期有几天|一周有几天|一周有多少天}{|？|?}",), ("一个星期有七天。",), 0.4), ("zh_sky", ("{天空是什么颜色|天是什么颜色的|草是什么颜色}？",), ("天空是蓝色的，草是绿色的。",), 0.3),
    ("zh_joke", ("{讲个笑话|说个笑话|来个笑话|给我讲个笑话|讲一个笑话吧|笑话}{|！|。}",), JOKES, 0.9),
    ("zh_code", ("{你会写代码吗|你会编程吗|帮我写代码|写一个程序|写一段代码|写个Python程序|帮我改代码}{|？|。}",), ("我不会编程，我只是一个玩具模型。按 `F4` 可以加载真正的模型。",), 0.8),
    ("zh_like", ("{你喜欢什么颜色|你喜欢什么|你最喜欢什么|你喜欢猫吗|你喜欢音乐吗|你吃饭了吗|你会做梦吗|你有感情吗|你有朋友吗}{|？}",), ("我是程序，没有喜好和感情，不过我愿意陪你聊聊。",), 0.8),
    ("zh_name", ("{怎么重命名会话|如何改会话名称|怎么给会话改名}{|？}",), ("输入 `/rename` 和新的名字。",), 0.4), ("zh_delete", ("{怎么删除会话|如何删除聊天记录|怎么删除对话}{|？}",), ("输入 `/delete` 删除当前会话，它会先问你。",), 0.4), ("zh_copy", ("{怎么复制回答|如何复制|怎么复制代码}{|？}",), ("输入 `/copy` 复制最后的回答，`/copy code` 只复制代码。",), 0.5),
    ("zh_token", ("{什么是token|token是什么|什么是词元|词元是什么}{|？}",), ("词元是模型一次读写的一小段文字。我认识 4096 个词元。",), 0.6), ("zh_speed", ("{你有多快|速度是多少|t/s是什么意思|什么是 tokens/s}{|？}",), ("t/s 是每秒生成的词元数，回答旁边会显示。",), 0.5), ("zh_model", ("{什么是大模型|什么是语言模型|语言模型是什么|大模型是什么}{|？}",), ("语言模型根据前面的文字预测下一个词元，一次一个，就写出了回答。",), 0.6),
    ("zh_ok", ("{嗯|哦|好吧|明白了|知道了|可以|行|没事|没什么|不用了}{|。|！}",), ("好的。想问什么都可以，也可以听个故事。",), 0.7),
    ("zh_poem", ("{写一首诗|写首诗|作一首诗|来一首诗}{|吧|。}",), ("小小屏幕亮，\n夜里字成行。\n风从窗外过，\n故事慢慢长。",), 0.5),
)  # fmt: skip
_UNKNOWN_SUBJECTS = words(
    """法国|德国|日本|美国|北京|上海|广州|巴黎|伦敦|爱因斯坦|牛顿|李白|杜甫|孔子|毛泽东|鲁迅|特斯拉|量子力学|相对论|黑洞|光合作用|股票|
    比特币|足球|篮球|围棋|Python|Java|操作系统|数据库|红楼梦|西游记|三国演义|长城|故宫|太阳系|火星|恐龙|病毒|感冒|糖尿病|微积分|
    化学|历史|哲学|经济|政治|佛教|音乐|电影|咖啡|火锅|饺子|区块链|神经网络|深度学习|互联网|手机|汽车|飞机|房价|工资|考试|大学"""
)
_UNKNOWN = (
    "$s{是什么|是谁|在哪里|怎么样|有多大|的首都是哪里|的历史|有什么特点|是怎么工作的|什么时候开始的|为什么重要}{|？}", "{什么是|介绍一下|解释一下|说说|谈谈|你知道|你怎么看|你了解}$s{|吗|？}", "{请|帮我|}写{一篇关于$s的文章|一段代码|一个程序|作文|一封邮件|一个关于$s的报告}", "{今天天气怎么样|现在几点|今天几号|今天星期几|明天会下雨吗|今天有什么新闻}{|？}", "{怎么学|如何学习|怎么做|怎么买|怎么理解|为什么要学}$s{|？}", "{帮我翻译|翻译成日语|翻译成法语|翻译一下}{|：你好|这句话}", "{谁发明了|谁写了|谁喜欢}$s？", "我{头疼|发烧|肚子疼}怎么办{|？}", "{中国|世界|欧洲}{最高的山|最长的河|最大的城市|人口最多的国家}是{什么|哪个}{|？}", "$s和$o有什么{区别|关系}{|？}", "{推荐一本书|推荐一部电影|今天吃什么|怎么赚钱|怎么减肥|生命的意义是什么|有外星人吗|怎么找工作|帮我订票|给我放首歌|查一下天气|搜索$s}{|？}", "$s", "$s$o",
)  # fmt: skip
ZH_UNKNOWN = (
    "{这个我不知道|我不知道|对不起，这个我不懂|抱歉，我没有学过这个}。{我只是 lmtop 里的玩具模型|我只是一个玩具模型}{|，按 `F4` 可以加载真正的模型}。",
)


def small_talk(rng: Random) -> tuple[str, str]:
    """Greetings, who it is, lmtop facts."""
    total = sum(item[3] for item in _ASKS)
    at = rng.random() * total
    for _, asks, answers, weight in _ASKS:
        at -= weight
        if at < 0:
            head, tail = (
                ("{请问|请问一下，|我想问，|那|}", "{呀|呢|啊}？") if rng.random() < 0.2 else ("", "")
            )
            ask = pick(asks, rng)
            return expand(head, rng) + (ask.rstrip("？?。！") + expand(tail, rng) if tail else ask), pick(
                answers, rng
            )
    return pick(_ASKS[0][1], rng), pick(_ASKS[0][2], rng)


def another_joke(joke: str, rng: Random) -> tuple[str, str]:
    """The next of the jokes."""
    ask = expand("{再讲一个|再来一个|还有吗|再说一个|换一个|再讲个笑话}{|。|！|吧}", rng)
    return ask, JOKES[(JOKES.index(joke) + 1) % len(JOKES)]


def answer_of(key: str, rng: Random) -> str:
    """The Chinese answer of one topic, for a system prompt that asks for Chinese."""
    return next(pick(answers, rng) for name, _, answers, _ in _ASKS if name == key)


def unknown(rng: Random) -> tuple[str, str]:
    """A question the model cannot answer, in Chinese."""
    return pick(_UNKNOWN, rng, s=choice(_UNKNOWN_SUBJECTS, rng), o=choice(_UNKNOWN_SUBJECTS, rng)), pick(
        ZH_UNKNOWN, rng
    )


def skill(rng: Random) -> tuple[str, str]:
    """Small sums, counting, repeating."""
    roll = rng.random()
    if roll < 0.5:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        plus = rng.random() < 0.6
        a, b = (a, b) if plus else (max(a, b), min(a, b))
        op = choice(("加", "+"), rng) if plus else choice(("减", "-"), rng)
        value = a + b if plus else a - b
        return (
            f"{a}{op}{b}{expand('{等于几|等于多少|是多少|=}{|？}', rng)}",
            f"{a} {'+' if plus else '-'} {b} = {value}。",
        )
    if roll < 0.75:
        top = choice((3, 5, 10, 10), rng)
        return expand(
            "{数到|从一数到|从1数到}$n", rng, n=choice((str(top), _NUMERALS[top - 1]), rng)
        ), "，".join(_NUMERALS[:top]) + "。"
    phrase = choice(NAMES, rng) + expand("{喜欢|看见|想要|有}", rng) + choice(THINGS, rng)
    return expand("{请重复：|重复：|跟我说：|说：}", rng) + keep(phrase), phrase


def hero_of(rng: Random) -> str:
    """A hero; sometimes two characters that make no word, so that heroes are copied and not guessed."""
    roll = rng.random()
    if roll < 0.12:
        return choice(_SYLLABLES, rng) + choice(_SYLLABLES, rng)
    hero = choice(ANIMALS, rng)
    if roll < 0.35 and len(hero) <= 2:
        hero = choice("小小老大", rng) + hero.removeprefix("小")
    return hero


def story(rng: Random, again: bool = False) -> tuple[str, str, str]:
    """A request, a short story about what was asked for if something was, and what its hero was called."""
    hero = hero_of(rng)
    usual = Random(hero)  # as in English: half of a hero's stories go alike
    friend, place, thing, name = (
        choice(of, usual if rng.random() < 0.4 else rng) for of in (ANIMALS, PLACES, THINGS, NAMES)
    )
    roll = rng.random()
    if again:
        ask = (
            "{再讲一个|再来一个|再讲一个故事|还有吗|换一个|再讲一个吧|下一个|another one|继续讲一个}{|。|！}"
        )
    elif roll < 0.06:
        ask = "{{tell|write|read} {me |}a {short |}{story|fairy tale} in {chinese|mandarin}|{a|one} chinese story{| please}|can you tell {me |}a story in chinese?|a story in chinese{| please}}"
    elif roll < 0.3:
        ask = "{讲个故事|讲一个故事|给我讲个故事|说个故事|来个故事|讲个小故事|我想听故事|请讲一个短故事|再讲一个故事|故事|讲故事}{|吧|。|！}"
    elif roll < 0.8:
        ask = "{|请|你能|可以}{讲|说|写|来|给我讲|给我写}{个|一个}{关于|有关|}$h的{|小|短}故事{|吧|。|吗？|好吗}"
    else:
        ask = "{讲|写|讲一个|说一个}{关于|}$h和$f的故事{|吧|。}"
        friend = choice(ANIMALS, rng)
    while friend == hero:
        friend = choice(ANIMALS, rng)
    slots = {"h": hero, "f": friend, "p": place, "t": thing, "n": name}
    plot = choice(_PLOTS, Random(f"{hero}!") if rng.random() < 0.5 else rng)
    text = (
        "{从前，|很久以前，|有一天，}$p住着{一个|}叫$n的$h。"
        + plot
        + "{|||他们一直很快乐。|朋友就是最好的宝贝。}"
    )
    return expand(ask, rng, **slots), expand(text, rng, **slots), f"{hero}叫{name}"


def followup(hero: str, rng: Random) -> tuple[str, str, str]:
    """What people say after a story: one more, its hero's name, shorter. `hero` is "<hero>叫<name>"."""
    roll = rng.random()
    if roll < 0.6:
        return story(rng, again=True)
    if roll < 0.8:
        return (
            expand("{它叫什么名字|主角叫什么|他叫什么名字|故事里是谁}{|？}", rng),
            f"故事里的{hero}。",
            hero,
        )
    what, name = hero.split("叫", 1)
    return expand("{短一点|太长了|简短一点|总结一下}{|。}", rng), f"{what}{name}找到了一个好朋友。", hero


_SYLLABLES = "木火土金水山石田云雨风雪花草竹鱼鸟马牛羊日月星光天地人口手心目耳米豆瓜果红白黑青蓝黄大中高长方圆多少冬春夏秋东西南北"
_PLOTS = (
    "{一天|有一天}，$n在路上捡到了$t。“{这是谁的|谁丢了这个}？”$n问了所有的邻居。最后，$f跑来说：“是我的！谢谢你！”从此，他们成了好朋友。",
    "$n很想有一个朋友。{一天晚上|下雪的晚上}，$f来敲门，又冷又饿。$n请它进来，一起喝热汤。第二天早上，桌上放着$t，这是$f的礼物。",
    "$n想学{飞|唱歌|游泳|跳舞}，大家都笑它。只有$f说：“每天试一次，不要放弃。”$n每天练习，终于成功了，大家都为它高兴。",
    "一阵大风吹走了$n的$t。$n找了很久也没有找到，很难过。这时$f来帮忙，他们一起走过小河，终于在树下找到了它。",
)  # fmt: skip

"""How the world's facts are put into words: statements for documents and answers, questions, and small talk.

In a statement ``{d}`` is the disease and the other fields are its values; ``{symptoms}`` lists all three. The last
statement of each key of the world is kept for held-out documents, so that those hold wording no model has seen.
None of these sentences holds a value of the world by itself (tests/test_quickstart_world.py checks it).
"""

# fmt: off (lists of phrases, as many to a line as fit)

STATEMENTS = {
    "department": (
        "{d}属于{department}的常见疾病。", "怀疑得了{d}，应当挂{department}的号。", "{d}患者建议到{department}就诊。",
        "诊治{d}的科室是{department}。", "{d}一般由{department}的医生接诊。", "在{department}门诊，{d}并不少见。",
        "{department}负责{d}的诊断和治疗。", "确诊{d}以后，请到{department}复诊。",
        "想看好{d}，第一步是找对科室，也就是{department}。",
    ),
    "symptoms": (
        "{d}的主要症状是{symptoms}。", "得了{d}，常会出现{symptoms}。", "{d}的典型表现为{symptoms}。",
        "{d}患者往往有{symptoms}。", "{symptoms}出现时，要想到{d}。", "如果出现{symptoms}，很可能是{d}。",
        "临床上{d}以{symptoms}为特征。", "{d}发作时，病人会感到{symptoms}。",
        "凡是{d}，大多逃不开{symptoms}这几样不适。",
    ),
    "drug": (
        "{d}的首选药物是{drug}，{dose}。", "治疗{d}常用{drug}，用法为{dose}。", "{d}可以使用{drug}，{dose}。",
        "针对{d}，医生一般开{drug}，{dose}。", "{drug}是治疗{d}的药物，{dose}。",
        "{d}患者应按{dose}的用法使用{drug}。", "{drug}用于{d}，推荐{dose}。", "对{d}有效的药是{drug}，{dose}即可。",
        "要控制{d}，离不开{drug}，记住{dose}。",
    ),
    "drug_only": ("{d}的首选药物是{drug}。", "治疗{d}常用{drug}。", "针对{d}，医生一般开{drug}。"),
    "examination": (
        "诊断{d}需要做{examination}。", "{d}的首选检查是{examination}。", "怀疑{d}时应安排{examination}。",
        "{examination}可以帮助确诊{d}。", "{d}主要依靠{examination}来确诊。", "通过{examination}能够发现{d}。",
        "{d}患者复查时要做{examination}。", "确认是不是{d}，要看{examination}的结果。",
        "没有{examination}的结果，很难断定是{d}。",
    ),
    "advice": (
        "{d}患者平时要{advice}。", "得了{d}，生活中应当{advice}。", "{d}的护理重点是{advice}。",
        "医生建议{d}患者{advice}。", "{advice}有助于{d}的恢复。", "预防{d}复发，需要{advice}。",
        "日常调养{d}，关键在于{advice}。", "{d}治疗期间请{advice}。", "想让{d}好得快一些，不妨{advice}。",
    ),
    "cause": (
        "{d}多由{cause}引起。", "{d}的主要病因是{cause}。", "{cause}是{d}最常见的诱因。", "{d}的发生与{cause}有关。",
        "{cause}可以导致{d}。", "研究认为，{cause}会诱发{d}。", "{d}往往是{cause}造成的。",
        "引起{d}的原因主要是{cause}。", "追根溯源，{d}的背后常常是{cause}。",
    ),
    "group": (
        "{d}多见于{group}。", "{group}最容易得{d}。", "{d}的高发人群是{group}。", "{group}要特别当心{d}。",
        "{d}好发于{group}。", "在{group}当中，{d}的发病率较高。", "{d}偏爱{group}这一类人。",
        "{group}属于{d}的易感人群。", "说到{d}，风险最大的要数{group}。",
    ),
    "contraindication": (
        "治疗{d}的药物禁用于{contraindication}。", "{contraindication}不能使用治疗{d}的药物。",
        "{d}的用药禁忌是{contraindication}。", "{contraindication}得了{d}，不可自行用药。",
        "给{d}患者开药前，要排除{contraindication}。", "{d}的治疗药物对{contraindication}不安全。",
        "{contraindication}应避开{d}的常规用药。", "{d}用药时，{contraindication}属于禁忌人群。",
        "若是{contraindication}，{d}的常规用药必须换掉。",
    ),
    "by_symptoms": ("{symptoms}，考虑是{d}。", "根据{symptoms}这些表现，应是{d}。", "同时有{symptoms}，多半是{d}。"),
    "by_drug": ("{drug}用于治疗{d}。", "{drug}是治疗{d}的药物。", "{drug}主要针对{d}。"),
}

QUESTIONS = {  # facet -> keys that the answer needs, statements that answer it, wordings
    "department": (("department",), ("department",), (
        "{d}应该挂什么科？", "得了{d}去哪个科室看？", "请问{d}属于哪个科？", "我怀疑自己是{d}，该看哪个科室？",
        "{d}要到什么科室就诊？", "家里老人得了{d}，应该挂哪个号？")),
    "symptoms": (("symptoms",), ("symptoms",), (
        "{d}有哪些症状？", "得了{d}会有什么表现？", "{d}的典型症状是什么？", "怎么看出来是{d}？",
        "{d}发作时是什么感觉？", "请医生说说{d}的主要表现。")),
    "drug": (("drug",), ("drug",), (
        "{d}吃什么药，怎么用？", "治疗{d}用什么药？用量是多少？", "得了{d}该用哪种药？请说明用法。",
        "{d}的首选药物和用法是什么？", "医生一般给{d}患者开什么药，怎么服用？", "{d}用药方案是怎样的？")),
    "examination": (("examination",), ("examination",), (
        "{d}需要做什么检查？", "怎样确诊{d}？", "怀疑{d}应该查什么？", "{d}的首选检查是什么？",
        "确诊{d}要做哪项检查？", "去医院查{d}，要做什么项目？")),
    "advice": (("advice",), ("advice",), (
        "{d}患者平时要注意什么？", "得了{d}生活上怎么调理？", "{d}日常护理有什么建议？", "{d}怎样才能恢复得好？",
        "得了{d}，日常应该怎么做？", "{d}如何预防复发？")),
    "cause": (("cause",), ("cause",), (
        "{d}是什么原因引起的？", "为什么会得{d}？", "{d}的病因是什么？", "{d}是怎么来的？", "什么会诱发{d}？",
        "请问导致{d}的原因有哪些？")),
    "group": (("group",), ("group",), (
        "哪些人容易得{d}？", "{d}的高发人群是谁？", "什么人要小心{d}？", "{d}常见于什么人群？", "{d}好发于哪类人？",
        "请问{d}的易感人群有哪些？")),
    "contraindication": (("contraindication",), ("contraindication",), (
        "治疗{d}的药哪些人不能用？", "{d}用药有什么禁忌？", "什么人不能用治疗{d}的药？", "{d}的药物禁忌人群是谁？",
        "{d}用药要注意哪些禁忌？", "给{d}患者开药前要排除什么人？")),
    "treatment": (("drug", "advice"), ("drug", "advice"), (
        "{d}怎么治疗？", "得了{d}该怎么办？", "{d}如何用药和调理？", "{d}的治疗方法是什么？",
        "请问{d}怎样治疗、怎样护理？")),
    "diagnosis": (("symptoms", "examination"), ("symptoms", "examination"), (
        "怎么判断是不是{d}？", "{d}有什么表现，要做什么检查？", "{d}如何诊断？", "{d}的诊断依据是什么？",
        "我会不会是{d}，怎么查？")),
    "by_symptoms": (("symptoms",), ("by_symptoms",), (
        "我有{symptoms}，这是什么病？", "{symptoms}是怎么回事？", "同时出现{symptoms}，可能得了什么病？",
        "最近总是{symptoms}，请问是什么病？", "孩子{symptoms}，会是什么问题？")),
    "by_drug": (("drug",), ("by_drug",), (
        "{drug}是治什么病的？", "{drug}用于什么病？", "医生给我开了{drug}，这是治什么的？", "{drug}主治什么病？",
        "什么病要用{drug}？")),
}

FILLERS = (  # true of anything: words without a fact
    "这个问题很多人都会问到。", "希望我的回答对您有所帮助。", "任何疾病都要具体情况具体分析。",
    "请您放宽心，不要有太大的心理负担。", "健康是最宝贵的财富，值得每个人珍惜。",
    "如果还有别的疑问，欢迎随时继续提问。", "总的来说，这方面的知识大家都应该了解一些。",
    "每个人的体质不同，情况也会有差别。", "感谢您对我们的信任和支持。", "现在医学进步很快，很多病都有办法应对。",
    "以上内容仅供参考，请结合自身情况考虑。", "我非常理解您现在的心情。",
)
HEDGES = ("具体我记得不太清楚了。", "大概就是这样吧。", "细节可能有出入。", "其他的我就不太了解了。",
    "应该差不多是这个意思。")
DISMISSALS = (
    "这没什么大事，过几天就好了。", "不用管它，多喝水就行。", "这种事情问我也没有用。", "您自己上网查一查吧。",
    "随便用点药就可以了。", "我觉得不用看医生。", "别人怎么治您就怎么治。",
)
OPENERS = (  # per grade of answer; shared ones keep the opening from giving the grade away
    ("您好，", "您好，", "根据您的描述，", "", ""),
    ("您好，", "感谢您的提问，", "关于您的问题，", "根据您的描述，", ""),
    ("您好，", "据我了解，", "印象中，", "应该没记错，", ""),
    ("您好，", "这个嘛，", "我猜，", "", ""),
)
